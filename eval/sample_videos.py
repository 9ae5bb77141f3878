"""Videos of a run as files, and whether such a file is whole: after a crash of the machine it may be short or empty."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ditfastattn.opensora.video import ffmpeg, write_video
from eval.sample_files import name

ENDINGS = ("gif", "mp4")
_MP4_NEEDED = {b"ftyp", b"moov", b"mdat"}


def check_backend(ending: str) -> None:
    """Raises DitFastAttnError where nothing can write such a file."""
    if ending == "mp4":
        ffmpeg()


def video_path(folder: Path, index: int, ending: str) -> Path:
    return folder / "videos" / f"{name(index)}.{ending}"


def write_videos(folder: Path, indices: Sequence[int], videos: np.ndarray, ending: str) -> None:
    """Videos (B, T, H, W, 3) uint8, a file each. Raises PlanError where one cannot be written."""
    for index, frames in zip(indices, videos, strict=True):
        write_video(video_path(folder, index, ending), frames)


def is_whole_video(path: Path, size: tuple[int, ...]) -> bool:
    """Whether a video of (T, height, width) is there from its first bytes to its last.

    Frames are not counted: a GIF holds frames that are equal only once.
    """
    try:
        with open(path, "rb") as file:
            return _is_whole_gif(file.read(10), path, size) if path.suffix == ".gif" else _is_whole_mp4(path)
    except OSError:
        return False


def _is_whole_gif(head: bytes, path: Path, size: tuple[int, ...]) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        end = file.read()
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    return head[:4] == b"GIF8" and end == b";" and (height, width) == size[-2:]


def _is_whole_mp4(path: Path) -> bool:
    """Its boxes, each of which begins with its length and name (ISO/IEC 14496-12, 4.2), end where the file does."""
    found, place, end = set(), 0, path.stat().st_size
    with open(path, "rb") as file:
        while place < end:
            file.seek(place)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            if length < 8:
                return False
            found.add(head[4:8])
            place += length
    return place == end and found >= _MP4_NEEDED
