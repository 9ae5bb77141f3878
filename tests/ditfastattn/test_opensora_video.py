"""Videos as files."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from ditfastattn.errors import DitFastAttnError
from ditfastattn.opensora import write_video


def moving_square() -> np.ndarray:
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    for t, frame in enumerate(frames):
        frame[8:24, 6 * t : 6 * t + 16] = (250, 10, 10)
    return frames


@pytest.mark.parametrize("form", ["uint8", "floats", "images"])
def test_a_gif_holds_the_frames(tmp_path: Path, form: str) -> None:
    frames = moving_square()
    given = {"uint8": frames, "floats": frames / 255, "images": [PIL.Image.fromarray(frame) for frame in frames]}[form]
    write_video(tmp_path / "new" / "square.gif", given, fps=10)
    with PIL.Image.open(tmp_path / "new" / "square.gif") as gif:
        assert gif.n_frames == 5
        for t, frame in enumerate(frames):
            gif.seek(t)
            assert gif.info["duration"] == 100
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frame).max() <= 8  # of 256 colours
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["square.gif"]


def test_an_mp4_holds_the_frames(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames = moving_square()[:, :31]  # an odd height
    write_video(tmp_path / "square.mp4", frames, fps=8)
    reader = ffmpeg.read_frames(str(tmp_path / "square.mp4"))
    about = next(reader)
    assert about["size"] == (48, 32) and about["fps"] == 8
    read = np.stack([np.frombuffer(frame, np.uint8).reshape(32, 48, 3) for frame in reader])[:, :31]
    assert len(read) == 5 and np.abs(read.astype(int) - frames).mean() < 6


def test_without_its_backend_an_mp4_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(DitFastAttnError, match=r"pip install 'ditfastattn\[video\]', or name a \.gif"):
        write_video(tmp_path / "square.mp4", moving_square())
    assert not list(tmp_path.iterdir())


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    for frames in (moving_square()[0], moving_square()[:0], []):
        with pytest.raises(DitFastAttnError, match="one video is"):
            write_video(tmp_path / "square.gif", frames)
    mixed = [np.zeros((4, 4, 3)), np.zeros((5, 4, 3))]
    with pytest.raises(DitFastAttnError, match=r"2 frames of \(4, 4, 3\) and \(5, 4, 3\)"):
        write_video(tmp_path / "square.gif", mixed)
    with pytest.raises(DitFastAttnError, match=r"should end in \.gif or \.mp4"):
        write_video(tmp_path / "square.avi", moving_square())


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.full((2, 4, 4, 3), 7, np.int64), r"uint8, or floats in \[0, 1\], not int64"),
        (np.ones((2, 4, 4, 3), bool), r"uint8, or floats in \[0, 1\], not bool"),
        (np.full((2, 4, 4, 3), 7.0), r"frames of float64 are in \[0, 1\], not 7 to 7"),
        (np.full((2, 4, 4, 3), -0.1, np.float32), r"in \[0, 1\], not -0.1 to -0.1"),
        (np.full((2, 4, 4, 3), np.nan), "not nan to nan"),
    ],
)
def test_frames_that_are_no_colours_are_refused(tmp_path: Path, frames: np.ndarray, words: str) -> None:
    with pytest.raises(DitFastAttnError, match=words):
        write_video(tmp_path / "square.gif", frames)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "8", None])
def test_no_rate_is_refused(tmp_path: Path, fps: Any) -> None:
    for name in ("square.gif", "square.mp4"):
        with pytest.raises(DitFastAttnError, match="fps is a number above 0, not"):
            write_video(tmp_path / name, moving_square(), fps)


@pytest.mark.parametrize(("fps", "duration"), [(8, 120), (24, 40), (30, 30), (40.5, 20), (50, 20), (0.1, 10000)])
def test_a_gif_shows_the_rate_it_can(tmp_path: Path, fps: float, duration: int) -> None:
    write_video(tmp_path / "square.gif", moving_square(), fps)
    with PIL.Image.open(tmp_path / "square.gif") as gif:
        assert gif.info["duration"] == duration
    for other in (51, 120, 0.05):
        with pytest.raises(DitFastAttnError, match=r"shows 0.1 to 50 frames a second, not .*: name another fps"):
            write_video(tmp_path / "square.gif", moving_square(), other)
