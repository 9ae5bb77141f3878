"""Arrays in .npz files, read in rows so that 50,000 images never lie in memory at once; nothing is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ditfastattn.errors import MetricError


class Header(NamedTuple):
    """Shape and type of an array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype


def names(path: Path) -> list[str]:
    """The arrays in an .npz file.

    Raises:
        MetricError: it is missing, or not an .npz file.
    """
    with _archive(path) as archive:
        return [entry.removesuffix(".npy") for entry in archive.namelist()]


def header(path: Path, name: str) -> Header:
    """Shape and dtype of the array `name`, without its data.

    Raises:
        MetricError: no such array, one of Python objects, or in Fortran order.
    """
    with _archive(path) as archive, _open(archive, path, name) as stream:
        return _header(stream, path, name)


def rows(path: Path, name: str, batch: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Rows [start, stop) of the array `name`, at most `batch` at a time, read-only.

    Raises:
        MetricError: as `header`; the file ends early or is damaged.
    """
    with _archive(path) as archive, _open(archive, path, name) as stream:
        shape, dtype = _header(stream, path, name)
        row = int(np.prod(shape[1:])) * dtype.itemsize
        stop = shape[0] if stop is None else stop
        try:
            stream.seek(start * row, 1)  # a stored member is sought, a deflated one read through
            for first in range(start, stop, batch):
                count = min(batch, stop - first)
                data = stream.read(count * row)
                if len(data) != count * row:
                    raise MetricError(f"{path} ends in the middle of {name}; copy or write the file again")
                yield np.frombuffer(data, dtype).reshape(count, *shape[1:])
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise MetricError(f"{path} is damaged ({error}); copy or write the file again") from None


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise MetricError(f"{path} does not exist; check the path") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise MetricError(f"{path} is not a readable .npz file ({error}); write or copy it again") from None


def _open(archive: zipfile.ZipFile, path: Path, name: str) -> IO[bytes]:
    try:
        return archive.open(f"{name}.npy")
    except KeyError:
        raise MetricError(f"{path} has no array {name}; it has {', '.join(names(path)) or 'none'}: rename it") from None


def _header(stream: IO[bytes], path: Path, name: str) -> Header:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError as error:
        raise MetricError(f"{name} in {path} is not a numpy array ({error}); write the file again") from None
    if dtype.hasobject:
        raise MetricError(f"{name} in {path} holds Python objects, which are never loaded; expected numbers")
    if fortran and len(shape) > 1:
        raise MetricError(f"{name} in {path} is in Fortran order; save it again with numpy.ascontiguousarray")
    return Header(shape, dtype)
