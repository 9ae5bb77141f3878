"""Frames as a video file."""

import math
import os
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ditfastattn.errors import DitFastAttnError
from plans.files import write_whole

GIF_FPS = 50  # at most


def write_video(path: str | os.PathLike[str], frames: Any, fps: float = 8) -> None:
    """Writes one video, whole or not at all.

    Args:
        path: ``.gif`` (Pillow: 256 colours) or ``.mp4`` (H.264 by imageio-ffmpeg, which
            ``pip install 'ditfastattn[video]'`` brings; odd sides grow by a pixel).
        frames: (T, H, W, 3), uint8 or floats in [0, 1], or T images of Pillow.
        fps: frames a second. Open-Sora shows its videos at 8. A GIF's times are whole hundredths of a second, to which
            they are rounded, and browsers slow down what is under two of them: it takes 0.1 to 50.

    Raises:
        DitFastAttnError: another ending, no frames, frames of several sizes or that are no colours, an ``fps`` that
            cannot be shown, or no backend for ``.mp4``.
        PlanError: the file cannot be written.
    """
    target, pixels = Path(path), _pixels(frames)
    ending = target.suffix.lower()
    if not isinstance(fps, Real) or not 0 < fps < math.inf:
        raise DitFastAttnError(f"fps is a number above 0, not {fps!r}")
    if ending == ".gif":
        if not 0.1 <= fps <= GIF_FPS:
            raise DitFastAttnError(
                f"a .gif shows 0.1 to {GIF_FPS} frames a second, not {fps:g}: name another fps, or an .mp4"
            )
        first, *rest = [PIL.Image.fromarray(frame) for frame in pixels]
        duration = 10 * round(100 / fps)  # ms
        write_whole(
            target, lambda file: first.save(file, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
        )
    elif ending == ".mp4":
        backend = ffmpeg()
        write_whole(target, lambda file: _write_mp4(backend, file, pixels, float(fps)))
    else:
        raise DitFastAttnError(f"{target} should end in .gif or .mp4")


def _pixels(frames: Any) -> NDArray[np.uint8]:
    arrays: list[NDArray[Any]] = [np.asarray(frame) for frame in frames]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] != 3 or 0 in shapes[0]:
        what = f"{len(arrays)} frames of {' and '.join(map(str, shapes[:3]))}" if arrays else "none"
        raise DitFastAttnError(f"one video is frames of one size (height, width, 3), one at least, not {what}")
    given: NDArray[Any] = np.stack(arrays)
    if given.dtype == np.uint8:
        return given
    if not np.issubdtype(given.dtype, np.floating):
        raise DitFastAttnError(f"frames are uint8, or floats in [0, 1], not {given.dtype}")
    if not (given.min() >= 0 and given.max() <= 1):  # NaN is neither
        raise DitFastAttnError(f"frames of {given.dtype} are in [0, 1], not {given.min():.3g} to {given.max():.3g}")
    return (given * 255).round().astype(np.uint8)


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
