"""Sets of images, read in batches: a folder, or an .npz file as ADM's tools read it.

Samples are taken as they are, or refused: a resize, a conversion or a skipped file would change the number without
a word. Real images may be cropped and converted, as ADM does, and what was converted or skipped is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ditfastattn.errors import MetricError
from eval import npz
from eval.crop import centre_crop
from eval.runs import is_video

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
VIDEOS = "{} holds videos, and this measures images; python -m eval similarity compares them"
THREADS = 8  # PIL decodes outside of Python's lock


class ImageSource(Protocol):
    """Images in a fixed order, all (height, width, 3) uint8."""

    path: Path
    count: int
    size: tuple[int, int]  # (height, width)
    notes: list[str]  # what was done to the images, for people and for the result
    unreadable: list[str]

    def batches(self, batch: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Images [start, stop), as (B, H, W, 3) uint8."""
        ...

    def fingerprint(self) -> str: ...


@dataclass
class Npz:
    """arr_0 of an .npz file, (N, H, W, 3) uint8: an ADM sample or reference batch."""

    path: Path
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape, dtype = npz.header(self.path, "arr_0")
        if len(shape) == 5:
            raise MetricError(VIDEOS.format(self.path))
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
            raise MetricError(
                f"arr_0 in {self.path} is {dtype} {shape}; expected uint8 (N, height, width, 3), RGB from 0 to 255"
            )
        if not shape[0]:
            raise MetricError(f"arr_0 in {self.path} has no images; expected at least 2")
        self.count, self.size = shape[0], (shape[1], shape[2])

    def batches(self, batch: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        return npz.rows(self.path, "arr_0", batch, start, stop)

    def fingerprint(self) -> str:
        return fingerprint(self.path.parent, [self.path])


class Folder:
    """Images under `path`, in the order of their relative names, class folders included.

    `crop`: side of ADM's centre crop; grey, CMYK, palette and transparent files become RGB then, as ADM does.
    Without it all must be RGB and of one size, which is checked before the first is used.

    Raises:
        MetricError: no folder, no image, or (without `crop`) grey images or mixed sizes; from `batches`, a file
            that cannot be decoded, unless `skip_unreadable`.
    """

    def __init__(self, path: Path, crop: int | None = None, skip_unreadable: bool = False) -> None:
        self.path, self.crop, self.skip = path, crop, skip_unreadable
        self.files = _listed(path)
        self.notes: list[str] = []
        self.unreadable: list[str] = []
        self.count = len(self.files)
        self.size = (crop, crop) if crop else self._one_size()

    def _one_size(self) -> tuple[int, int]:
        first: tuple[int, int] | None = None
        with ThreadPoolExecutor(THREADS) as pool:
            for file, (size, mode) in zip(self.files, pool.map(_probe, self.files), strict=True):
                if mode != "RGB":
                    what = "grey" if mode in ("1", "L", "LA", "I", "I;16", "F") else f"of mode {mode}"
                    raise MetricError(
                        f"{file} is {what}; expected RGB images: convert it (samples are taken as they are; a "
                        "reference of real images is cropped and converted as ADM does with --size)"
                    )
                first = first or size
                if size != first:
                    raise MetricError(
                        f"{self.path} has mixed sizes: {self.files[0].name} is {first[0]} x {first[1]}, {file.name} is "
                        f"{size[0]} x {size[1]} (width x height); expected one size (samples are taken as they are; a "
                        "reference of real images is cropped to one with --size)"
                    )
        assert first is not None
        return first[1], first[0]

    def batches(self, batch: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        files = self.files[start:stop]
        waiting: deque[tuple[Path, Future[tuple[np.ndarray, str]]]] = deque()
        ready: list[np.ndarray] = []
        modes: dict[str, int] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                ahead = iter(files)
                while True:
                    # Not pool.map, which would decode all of them ahead of a slow network.
                    while len(waiting) < batch + THREADS and (file := next(ahead, None)) is not None:
                        waiting.append((file, pool.submit(_decode, file, self.crop)))
                    if not waiting:
                        break
                    file, future = waiting.popleft()
                    try:
                        image, mode = future.result()
                    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                        self._cannot_read(file, error)
                        continue
                    modes[mode] = modes.get(mode, 0) + 1
                    if image.shape[:2] != self.size:  # changed since it was listed
                        raise MetricError(f"{file} changed while it was read; run the command again")
                    ready.append(image)
                    if len(ready) == batch:
                        yield np.stack(ready)
                        ready = []
            finally:
                for _, future in waiting:
                    future.cancel()
        if ready:
            yield np.stack(ready)
        for mode, count in sorted(modes.items()):
            if mode != "RGB":
                self.notes.append(f"{count} images of mode {mode} were converted to RGB, as ADM does")

    def _cannot_read(self, file: Path, error: Exception) -> None:
        self.unreadable.append(str(file.relative_to(self.path)))
        if not self.skip and self.crop is None:
            raise MetricError(
                f"{file} cannot be read as an image ({' '.join(str(error).split())}); write or copy it again"
            ) from None

    def fingerprint(self) -> str:
        return fingerprint(self.path, self.files)


def open_source(path: Path, crop: int | None = None, skip_unreadable: bool = False) -> Npz | Folder:
    """The images of a folder, of a run folder of `eval sample` (its images/), or of an .npz file.

    Raises:
        MetricError: there is nothing there, or it is neither; a run that is not finished.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix != ".npz":
            raise MetricError(f"{path} is neither a folder nor an .npz file; give one of these")
        source = Npz(path)
        if crop and source.size != (crop, crop):
            raise MetricError(
                f"{path} has images of {source.size[1]} x {source.size[0]}, and an .npz file is never resized; "
                f"expected {crop} x {crop}: give the size it was made with"
            )
        return source
    if not path.is_dir():
        raise MetricError(f"{path} does not exist; give a folder of images or an .npz file")
    run = path / "run.json"
    if run.is_file() and is_video(_record(run)):
        raise MetricError(VIDEOS.format(path))
    folder = Folder(path / "images" if (path / "images").is_dir() else path, crop, skip_unreadable)
    if run.is_file():
        _check_finished(run, folder.count)
    return folder


def fingerprint(root: Path, files: list[Path]) -> str:
    """Hex digest of names relative to `root`, sizes, modification and status-change times, and inodes.

    Reading every byte of ImageNet to learn whether a cached result still holds would take as long as the work it
    saves. The modification time alone can be set back by tools that copy; the status-change time can't, so a file
    whose content changed never keeps its fingerprint. At worst one that did not change is measured again.
    """
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        entry = (
            file.relative_to(root).as_posix(),
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
        )
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def _listed(path: Path) -> list[Path]:
    found = (p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    files = sorted(
        (p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)),
        key=lambda p: p.relative_to(path).as_posix(),
    )
    if not files:
        raise MetricError(f"{path} holds no images; expected files ending in {', '.join(sorted(EXTENSIONS))}")
    return files


def _probe(file: Path) -> tuple[tuple[int, int], str]:
    """(width, height) and mode, from the header alone."""
    try:
        with Image.open(file) as image:
            return image.size, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).replace(f" {str(file)!r}", "")
        raise MetricError(f"{file} cannot be read as an image ({reason}); write or copy it again") from None


def _decode(file: Path, crop: int | None) -> tuple[np.ndarray, str]:
    """(H, W, 3) uint8 and the mode it had in the file."""
    with Image.open(file) as image:
        image.load()
        mode = image.mode
        rgb = image.convert("RGB") if mode != "RGB" else image
        return (centre_crop(rgb, crop) if crop else np.asarray(rgb)), mode


def _record(run: Path) -> dict[str, Any]:
    try:
        record = json.loads(run.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise MetricError(f"{run} is not JSON; sample the run again")
    return record


def _check_finished(run: Path, count: int) -> None:
    """Refuse a run folder that says it has another number of images than there are."""
    said = _record(run).get("n")
    if isinstance(said, int) and said != count:
        raise MetricError(f"{run} is of {said} images, and there are {count}; finish or repeat the run first")
