"""Short clips of the demo's art: one drawing on white that moves, turns, grows or shrinks, with a caption.

    python -m ditfastattn.demo.clips --art node_modules --out build/stills.npz

writes the drawings; from them every clip is made where it is needed, on a GPU as well, by an affine map of a
drawing for each frame.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditfastattn.demo.classes import CLASSES
from ditfastattn.demo.data import prepare

SUBJECTS: tuple[str, ...] = (
    "smiling face",
    "cat face",
    "bird",
    "flower",
    "fruit",
    "heart",
    "moon",
    "ball",
)
"""Classes of the demo with many drawings, told apart at half their size."""

MOTIONS: tuple[str, ...] = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "turning left",
    "turning right",
    "growing",
    "shrinking",
)
FRAMES = 16
SIZE = 64
FINE = 2  # pixels computed for each one kept, along each side: a drawing at half its size stays smooth

REACH = (0.2, 0.35)  # how far from the middle a way begins and ends; half a frame is 1
TURN = (math.pi / 3, 2 * math.pi / 3)
SMALL, LARGE = (0.5, 0.6), (0.85, 1.0)  # scales between which a drawing grows and shrinks
STEADY = (0.6, 0.8)  # scale of one that moves or turns
ASIDE = 0.12  # how far from the middle one may stand that does not move


@dataclass(frozen=True)
class Stills:
    """Drawings on white: images (N, 64, 64, 3) uint8, the subject of each (N,) int64, and which are held out."""

    images: np.ndarray
    subjects: np.ndarray
    held_out: np.ndarray

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, images=self.images, subjects=self.subjects, held_out=self.held_out)

    @classmethod
    def load(cls, path: Path) -> Stills:
        with np.load(path) as file:
            return cls(file["images"], file["subjects"], file["held_out"])


def draw_stills(art: Path, per_subject: int = 140) -> Stills:
    """One drawing of each icon of the subjects, from the packages that ART.md lists, split as the demo's."""
    found = prepare(art, drawings=1, per_class=per_subject, classes=SUBJECTS)
    index = {CLASSES.index(name): number for number, name in enumerate(SUBJECTS)}
    return Stills(found.images[:, 0], np.array([index[int(label)] for label in found.labels]), found.held_out)


def caption(subject: int, motion: int) -> str:
    name = SUBJECTS[subject]
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name} {MOTIONS[motion]}"


CAPTIONS: tuple[str, ...] = tuple(caption(s, m) for s in range(len(SUBJECTS)) for m in range(len(MOTIONS)))
"""Every caption; that of a subject and a motion is number ``subject * len(MOTIONS) + motion``."""


@dataclass(frozen=True)
class Paths:
    """How the drawings of N clips move: where the middle stands (right and down, half a frame is 1), how large it is
    (1 fills the frame) and how far it is turned (clockwise, radians), at the first and the last frame."""

    motions: Tensor  # (N,) int64
    ends: Tensor  # (N, 2, 4) float32: right, down, scale, angle

    def __getitem__(self, part: slice) -> Paths:
        return Paths(self.motions[part], self.ends[part])

    def maps(self, frames: int) -> Tensor:
        """(N, frames, 2, 3): from a frame's coordinates in [-1, 1] to the drawing's, evenly from end to end."""
        way = torch.linspace(0, 1, frames).view(1, -1, 1)
        right, down, scale, angle = (self.ends[:, :1] + way * (self.ends[:, 1:] - self.ends[:, :1])).unbind(-1)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        # A point p of the drawing is shown at R p * scale + middle; this is the inverse.
        x = torch.stack([cos, sin, -(cos * right + sin * down)], dim=-1)
        y = torch.stack([-sin, cos, sin * right - cos * down], dim=-1)
        return torch.stack([x, y], dim=-2)


def draw_paths(count: int, generator: torch.Generator) -> Paths:
    """Random paths, every motion equally often; drawn on the CPU, so they are the same on every device."""
    motions = torch.randperm(count, generator=generator) % len(MOTIONS)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    scale = between(*STEADY)
    first = torch.stack([between(-ASIDE, ASIDE), between(-ASIDE, ASIDE), scale, between(-0.2, 0.2)], dim=1)
    last = first.clone()
    away, back, turn = between(*REACH), between(*REACH), between(*TURN)
    small, large = between(*SMALL), between(*LARGE)
    for number, name in enumerate(MOTIONS):
        here = motions == number
        verb, _, to = name.partition(" ")
        if verb == "moving":
            axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[to]
            first[here, axis], last[here, axis] = -sign * back[here], sign * away[here]
        elif verb == "turning":
            last[here, 3] = first[here, 3] + (turn if to == "right" else -turn)[here]
        else:
            ends = (small, large) if verb == "growing" else (large, small)
            first[here, 2], last[here, 2] = ends[0][here], ends[1][here]
    return Paths(motions, torch.stack([first, last], dim=1))


def render(images: Tensor, paths: Paths, frames: int = FRAMES) -> Tensor:
    """Clips (N, frames, H, W, 3) uint8 of drawings (N, H, W, 3) uint8, on the drawings' device."""
    count, height, width, _ = images.shape
    maps = paths.maps(frames).to(images.device).flatten(0, 1)
    grid = F.affine_grid(maps, [len(maps), 3, FINE * height, FINE * width], align_corners=False)
    # Outside of a drawing is 0, so white has to be 0 as well.
    ink = images.permute(0, 3, 1, 2).float() - 255
    ink = ink[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    shown = F.avg_pool2d(F.grid_sample(ink, grid, align_corners=False), FINE) + 255
    return shown.round().clamp(0, 255).byte().permute(0, 2, 3, 1).unflatten(0, (count, frames))


def make_clips(
    images: Tensor, subjects: Tensor, count: int, seed: int, frames: int = FRAMES, chunk: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    """``count`` clips in chunks: (n, frames, H, W, 3) uint8 on the device of ``images`` (N, H, W, 3), and the numbers
    of their captions (n,).

    Every subject is shown about equally often, and the same seed gives the same clips.
    """
    generator = torch.Generator().manual_seed(seed)
    subjects = subjects.cpu()
    weights = 1 / torch.bincount(subjects).float()[subjects]
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    paths = draw_paths(count, generator)
    captions = subjects[chosen] * len(MOTIONS) + paths.motions
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        yield render(images[chosen[part].to(images.device)], paths[part], frames), captions[part]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ditfastattn.demo.clips", description=__doc__.split("\n\n")[0])
    parser.add_argument("--art", type=Path, required=True, help="the node_modules folder with the packages of ART.md")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--per-subject", type=int, default=140, help="drawings of a subject at most")
    args = parser.parse_args(argv)
    stills = draw_stills(args.art, args.per_subject)
    stills.save(args.out)
    size = args.out.stat().st_size / 1e6
    print(f"{len(stills.images)} drawings of {len(SUBJECTS)} subjects in {args.out}, {size:.1f} MB")


if __name__ == "__main__":
    main()
