"""Clips: how drawings move, what captions say of it, and that both are the same each time."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditfastattn.demo import clips
from ditfastattn.demo.classes import CLASSES
from ditfastattn.demo.clips import CAPTIONS, MOTIONS, SUBJECTS, Paths, Stills, draw_paths, make_clips, render
from ditfastattn.demo.data import prepare


def drawing(size: int = 32) -> torch.Tensor:
    """An arm from the middle to the right, (1, size, size, 3)."""
    image = torch.full((1, size, size, 3), 255, dtype=torch.uint8)
    image[:, size // 2 - 3 : size // 2 + 3, size // 2 : size - 4] = torch.tensor([200, 30, 60], dtype=torch.uint8)
    return image


def centres(clip: torch.Tensor) -> torch.Tensor:
    """Where the ink of each frame of (T, H, W, 3) lies, (T, 2): right and down, half a frame is 1."""
    ink = 255 - clip.double().mean(-1)
    places = (torch.arange(clip.shape[1], dtype=torch.float64) + 0.5) / clip.shape[1] * 2 - 1
    total = ink.sum((1, 2))
    return torch.stack([(ink.sum(1) * places).sum(1) / total, (ink.sum(2) * places).sum(1) / total], dim=1)


def one(right: float = 0, down: float = 0, scale: float = 1, angle: float = 0) -> Paths:
    return Paths(torch.zeros(1, dtype=torch.int64), torch.tensor([[[right, down, scale, angle]] * 2]))


def test_a_drawing_left_in_place_is_itself() -> None:
    plain = torch.tensor([11, 200, 90], dtype=torch.uint8).expand(1, 32, 32, 3)
    clip = render(plain, one(), 3)  # at its edges white shines in
    assert clip.shape == (1, 3, 32, 32, 3) and (clip[:, :, 1:-1, 1:-1] == plain[0, 0, 0]).all()
    clip = render(drawing(), one(), 2)[0]
    # Only edges differ: half of each fine pixel there is the neighbour's.
    assert ((clip.int() - drawing().int()).abs() > 60).float().mean() < 0.02


def test_a_quarter_turn_is_clockwise() -> None:
    clip = render(drawing(), one(angle=math.pi / 2), 2)[0]
    turned = torch.from_numpy(np.rot90(drawing()[0].numpy(), k=-1).copy())
    assert (clip[0].int() - turned.int()).abs().float().mean() < 3


@settings(max_examples=15, deadline=None)
@given(
    right=st.floats(-0.4, 0.4), down=st.floats(-0.4, 0.4), scale=st.floats(0.4, 0.6), angle=st.floats(-3, 3)
)  # fmt: skip
def test_a_frame_is_the_drawing_turned_scaled_and_shifted(
    right: float, down: float, scale: float, angle: float
) -> None:
    before = centres(drawing(64))[0]
    after = centres(render(drawing(64), one(right, down, scale, angle), 1)[0])[0]
    cos, sin = math.cos(angle), math.sin(angle)
    x = scale * (cos * before[0] - sin * before[1]) + right
    y = scale * (sin * before[0] + cos * before[1]) + down
    assert after.tolist() == pytest.approx([x.item(), y.item()], abs=0.02)


@pytest.mark.parametrize("motion", range(len(MOTIONS)), ids=[name.replace(" ", "-") for name in MOTIONS])
def test_a_caption_says_what_is_seen(motion: int) -> None:
    paths = draw_paths(32, torch.Generator().manual_seed(1))
    of_motion = (paths.motions == motion).nonzero()[:2, 0].tolist()
    assert len(of_motion) == 2
    for index in of_motion:
        clip = render(drawing(), paths[slice(index, index + 1)], 8)[0]
        right, down = (centres(clip)[1:] - centres(clip)[:-1]).T
        ink = (255 - clip.double()).sum((1, 2, 3))
        larger = ink[1:] / ink[:-1]
        arm = centres(clip) - torch.lerp(
            *paths.ends[index, :, None, :2].double(), torch.linspace(0, 1, 8).double()[:, None]
        )
        turn = arm[:-1, 0] * arm[1:, 1] - arm[:-1, 1] * arm[1:, 0]  # positive: clockwise, as down is positive
        seen = {
            "moving left": (right < -0.04).all() and (down.abs() < 0.02).all(),
            "moving right": (right > 0.04).all() and (down.abs() < 0.02).all(),
            "moving up": (down < -0.04).all() and (right.abs() < 0.02).all(),
            "moving down": (down > 0.04).all() and (right.abs() < 0.02).all(),
            "turning left": (turn < 0).all() and (larger - 1).abs().max() < 0.05,
            "turning right": (turn > 0).all() and (larger - 1).abs().max() < 0.05,
            "growing": (larger > 1.02).all(),
            "shrinking": (larger < 0.98).all(),
        }
        assert [name for name, holds in seen.items() if holds] == [MOTIONS[motion]]


def test_the_same_seed_gives_the_same_clips_whatever_the_chunk() -> None:
    images = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    subjects = torch.tensor([0, 0, 3, 3, 3])

    def all_clips(seed: int, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = list(make_clips(images, subjects, 20, seed, 4, chunk))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    first, names = all_clips(0, 7)
    assert first.shape == (20, 4, 16, 16, 3) and first.dtype == torch.uint8
    again, same = all_clips(0, 20)
    assert torch.equal(first, again) and torch.equal(names, same)
    assert not torch.equal(first, all_clips(1, 20)[0])
    assert set((names // len(MOTIONS)).tolist()) == {0, 3}


def test_every_subject_and_motion_is_shown_about_equally_often() -> None:
    images, subjects = torch.zeros(9, 2, 2, 3, dtype=torch.uint8), torch.tensor([0] * 8 + [1])
    names = torch.cat([captions for _, captions in make_clips(images, subjects, 400, 0, 1)])
    assert torch.bincount(names % len(MOTIONS)).tolist() == [50] * len(MOTIONS)
    assert 160 < (names < len(MOTIONS)).sum() < 240


def test_captions_are_numbered_by_subject_and_motion() -> None:
    assert len(set(CAPTIONS)) == len(SUBJECTS) * len(MOTIONS)
    assert set(SUBJECTS) <= set(CLASSES)
    assert CAPTIONS[SUBJECTS.index("cat face") * len(MOTIONS) + MOTIONS.index("turning left")] == (
        "a cat face turning left"
    )


def test_stills_of_the_subjects_alone_and_back_from_their_file(
    art: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(clips, "prepare", partial(prepare, sets=("noto", "twemoji"), workers=1))
    clips.main(["--art", str(art), "--out", str(tmp_path / "new" / "stills.npz"), "--per-subject", "3"])
    stills = Stills.load(tmp_path / "new" / "stills.npz")
    assert stills.images.shape == (3, 64, 64, 3)  # of four hearts; the other art is of other classes
    assert set(stills.subjects.tolist()) == {SUBJECTS.index("heart")}
    assert stills.held_out.dtype == bool
