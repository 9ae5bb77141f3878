"""Videos as files."""

from pathlib import Path

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
    with pytest.raises(DitFastAttnError, match=r"should end in \.gif or \.mp4"):
        write_video(tmp_path / "square.avi", moving_square())
