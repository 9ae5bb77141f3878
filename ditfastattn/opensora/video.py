"""Frames as a video file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ditfastattn.errors import DitFastAttnError
from plans.files import write_whole


def write_video(path: str | os.PathLike[str], frames: Any, fps: float = 8) -> None:
    """Writes one video, whole or not at all.

    Args:
        path: ``.gif`` (Pillow: 256 colours, times rounded to a hundredth of a second) or ``.mp4`` (H.264 by
            imageio-ffmpeg, which ``pip install 'ditfastattn[video]'`` brings; odd sides grow by a pixel).
        frames: (T, H, W, 3), uint8 or floats in [0, 1], or T images of Pillow.
        fps: frames a second. Open-Sora shows its videos at 8.

    Raises:
        DitFastAttnError: another ending, no frames, or no backend for ``.mp4``.
        PlanError: the file cannot be written.
    """
    target, pixels = Path(path), _pixels(frames)
    ending = target.suffix.lower()
    if ending == ".gif":
        first, *rest = [PIL.Image.fromarray(frame) for frame in pixels]
        duration = 1000 / fps
        write_whole(
            target, lambda file: first.save(file, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
        )
    elif ending == ".mp4":
        backend = ffmpeg()
        write_whole(target, lambda file: _write_mp4(backend, file, pixels, fps))
    else:
        raise DitFastAttnError(f"{target} should end in .gif or .mp4")


def _pixels(frames: Any) -> NDArray[np.uint8]:
    given: NDArray[Any] = np.stack([np.asarray(frame) for frame in frames]) if len(frames) else np.empty(0)
    if given.ndim != 4 or given.shape[-1] != 3:
        raise DitFastAttnError(f"one video is (frames, height, width, 3), with a frame at least, not {given.shape}")
    if given.dtype == np.uint8:
        return given
    return (given * 255).round().clip(0, 255).astype(np.uint8)


def ffmpeg() -> Any:
    """What writes ``.mp4``. Raises DitFastAttnError where it is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise DitFastAttnError(
            ".mp4 needs imageio-ffmpeg: pip install 'ditfastattn[video]', or name a .gif, which needs nothing more"
        ) from error
    return imageio_ffmpeg


def _write_mp4(backend: Any, file: Path, pixels: NDArray[np.uint8], fps: float) -> None:
    even = np.pad(pixels, [(0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)], mode="edge")
    size = (even.shape[2], even.shape[1])
    # The file beside the target has no ending that would tell the format.
    writer = backend.write_frames(
        str(file), size, fps=fps, macro_block_size=2, quality=8, output_params=["-f", "mp4"], ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for frame in even:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
