"""The files that samples lie in: PNG, the .npz of ADM, and latents. Each is written whole or not at all."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from plans.files import write_whole

_THREADS = 4  # PNG's compression runs outside of Python's lock
_LEFT_OVER = re.compile(
    r"\.\d{6,}\.(png|npy|gif|mp4)\.\d+\.tmp|\.(samples\.npz|labels\.npy|run\.json|plan\.json)\.\d+\.tmp"
)
_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB\x60\x82"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same images give the same bytes, whenever they are packed


def name(index: int) -> str:
    """000012 for 12; a millionth image has seven digits."""
    return f"{index:06d}"


def png_path(folder: Path, index: int) -> Path:
    return folder / "images" / f"{name(index)}.png"


def latents_path(folder: Path, index: int) -> Path:
    """Latents of one image, (C, h, w) float32, or of one video, (C, T, h, w)."""
    return folder / "latents" / f"{name(index)}.npy"


def part_path(folder: Path, first: int) -> Path:
    """Images of one batch, (B, H, W, 3) uint8, or videos, (B, T, H, W, 3), until all are packed into samples.npz."""
    return folder / "parts" / f"{name(first)}.npy"


def write_png(path: Path, image: np.ndarray) -> None:
    """(H, W, 3) uint8. Raises PlanError where it cannot be written; so do the others here."""
    write_whole(path, lambda beside: Image.fromarray(image).save(beside, format="png"))


def write_array(path: Path, array: np.ndarray) -> None:
    def write(beside: Path) -> None:
        with open(beside, "wb") as file:  # np.save would add an ending to the name
            np.save(file, array, allow_pickle=False)

    write_whole(path, write)


def write_pngs(folder: Path, indices: Sequence[int], images: np.ndarray) -> None:
    """Images (B, H, W, 3) uint8, a file each."""
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda index, image: write_png(png_path(folder, index), image), indices, images))


def is_whole_png(path: Path, size: tuple[int, ...]) -> bool:
    """Whether a PNG of that (height, width) is there from its first bytes to its last: after a crash of the machine a
    file may be short or empty, though its name is final."""
    try:
        with open(path, "rb") as file:
            head = file.read(24)
            file.seek(-len(_PNG_END), os.SEEK_END)
            end = file.read()
    except OSError:  # not there, or shorter than its end
        return False
    return head[:8] == _PNG_BEGIN and end == _PNG_END and struct.unpack(">II", head[16:24]) == (size[1], size[0])


def is_whole_array(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a .npy of that shape is there to its last byte."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).shape == shape
    except (OSError, ValueError, EOFError):  # not there, torn, or no .npy
        return False


def pack(path: Path, parts: Sequence[Path], count: int, size: tuple[int, ...]) -> None:
    """One ``samples.npz`` as ADM and DiT read it: ``arr_0``, uint8 (N, H, W, 3), uncompressed; a part in memory at a
    time. Of videos (N, T, H, W, 3)."""

    def write(beside: Path) -> None:
        entry = zipfile.ZipInfo("arr_0.npy", _EPOCH)
        with (
            zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive,
            archive.open(entry, "w", force_zip64=True) as out,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
            np.lib.format.write_array_header_1_0(out, header)
            for part in parts:
                out.write(np.load(part, allow_pickle=False).tobytes())

    write_whole(path, write)


def is_whole_npz(path: Path, count: int, size: tuple[int, ...]) -> bool:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            np.lib.format.read_magic(file)
            return np.lib.format.read_array_header_1_0(file)[0] == (count, *size, 3)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # the directory of a zip file is at its end
        return False


def is_left_over(file_name: str) -> bool:
    """Whether a kill left it beside a file that was being written."""
    return _LEFT_OVER.fullmatch(file_name) is not None


def sweep(folder: Path) -> None:
    """Removes what a kill left over, and nothing else."""
    for place in (folder, *(folder / name for name in ("images", "videos", "latents", "parts"))):
        for file in place.iterdir() if place.is_dir() else ():
            if is_left_over(file.name):
                file.unlink()
