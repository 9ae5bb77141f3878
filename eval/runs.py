"""A folder of samples with its record, as ``python -m eval sample`` leaves it, for reading.

``run.json`` says what made the images and ``labels.npy`` of which classes they are, if of any; they lie in
``images/000000.png ...`` or in ``samples.npz`` (``arr_0``, uint8, N,H,W,3), and the latents, where they were asked for,
in ``latents/000000.npy ...``. Videos lie in ``videos/000000.gif ...`` or in ``samples.npz`` (N,T,H,W,3).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditfastattn.errors import DitFastAttnError
from eval import npz

# Two runs that differ in one of these are of other noise, or of other things.
NOISE_KEYS = ("n", "seed", "labels", "prompts", "negative_prompt", "video", "sampler", "steps")
_THREADS = 8  # PIL decodes outside of Python's lock


class RunError(DitFastAttnError):
    """A folder of samples cannot be read, or two cannot be compared."""


@dataclass(frozen=True)
class Run:
    """``record``: what run.json holds."""

    path: Path
    record: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, videos: bool = False) -> Run:
        """The run of a folder; ``videos``: it may be one of videos, whose frames can be read exactly.

        Raises:
            RunError: no run.json there, not one of ours, the run is not finished, or it is of videos.
        """
        path = Path(path)
        file = path / "run.json"
        if not path.is_dir():
            raise RunError(f"{path} is no folder; name one that python -m eval sample wrote")
        try:
            record = json.loads(file.read_text())
        except FileNotFoundError:
            raise RunError(
                f"{path} holds no run.json; name a folder that python -m eval sample wrote (images of your own go to "
                "python -m eval fid, is, kid or precision-recall)"
            ) from None
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise RunError(f"{file} is not JSON; sample into another folder again") from None
        if not isinstance(record, dict) or not isinstance(record.get("n"), int):
            raise RunError(f"{file} does not say how many images there are (n); sample into another folder again")
        if "finished" in record and not record["finished"]:
            raise RunError(f"{path} is not finished; run the same python -m eval sample again, which goes on")
        run = cls(path, record)
        if run.is_video:
            run._check_video(videos)
        run._check_count()
        return run

    @property
    def n(self) -> int:
        return int(self.record["n"])

    @property
    def is_video(self) -> bool:
        return is_video(self.record)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def steps(self) -> int:
        return int(self.record.get("steps", 0))

    def name_beside(self, other: Run) -> str:
        """The folder's name, with the steps where the other run has another number of them."""
        return self.name if self.steps == other.steps else f"{self.name} ({self.steps} steps)"

    @property
    def archive(self) -> Path | None:
        """The .npz that the images are in, if they are not files of their own."""
        file = self.path / "samples.npz"
        return file if file.exists() else None

    @property
    def images_path(self) -> Path:
        """What the metrics read."""
        return self.archive or self.path

    @property
    def images_per_second(self) -> float | None:
        """Of sampling, without the first batch where there were more (it compiles); None if not recorded."""
        throughput = self.record.get("throughput") or {}
        return throughput.get("images_per_s_after_first_batch") or throughput.get("images_per_s")

    def _check_video(self, videos: bool) -> None:
        if not videos:
            raise RunError(f"{self.path} holds videos: python -m eval similarity compares them, this is for images")
        if self.archive is None:
            raise RunError(
                f"{self.path} holds {str(self.record.get('format', 'video')).upper()} files, which lose more than two "
                "runs may differ by; sample both with --format npz to compare them"
            )

    def _check_count(self) -> None:
        if self.archive is not None:
            shape, dtype = npz.header(self.archive, "arr_0")
            expected = ("N", "T", "H", "W", "3") if self.is_video else ("N", "H", "W", "3")
            if len(shape) != len(expected) or shape[-1] != 3 or dtype != np.uint8:
                raise RunError(f"{self.archive} holds {dtype} {shape}; expected uint8 ({', '.join(expected)})")
            found = shape[0]
        else:
            found = sum(self._png(index).exists() for index in range(self.n))
        if found != self.n:
            raise RunError(
                f"{self.path} has {found} of its {self.n} images; run the same python -m eval sample again, which goes "
                "on where it stopped"
            )

    def _png(self, index: int) -> Path:
        return self.path / "images" / f"{index:06d}.png"

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, of a video its middle frame. Raises RunError for a file that is no image."""
        if self.archive is not None:
            found = next(npz.rows(self.archive, "arr_0", 1, index, index + 1))[0]
            return found[len(found) // 2] if self.is_video else found
        file = self._png(index)
        try:
            with Image.open(file) as picture:
                return np.asarray(picture.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise RunError(f"{file} is no readable image ({str(error)[:80]}); delete it and sample again") from None

    @property
    def has_latents(self) -> bool:
        return (self.path / "latents").is_dir()

    def latent(self, index: int) -> Tensor:
        """(C, h, w) float64, of a video (C, T, h, w). Raises RunError where it cannot be read."""
        file = self.path / "latents" / f"{index:06d}.npy"
        try:
            return torch.from_numpy(np.load(file, allow_pickle=False)).double()
        except (ValueError, OSError) as error:
            raise RunError(f"{file} holds no readable latents ({str(error)[:80]}); sample again") from None

    def batches(self, size: int) -> Iterator[tuple[range, Tensor]]:
        """Indices and images (B, 3, H, W) uint8, or videos (B, T, 3, H, W).

        Raises RunError where the images are not all of one size.
        """
        packed = None if self.archive is None else npz.rows(self.archive, "arr_0", size)
        for start in range(0, self.n, size):
            indices = range(start, min(start + size, self.n))
            images = self._stacked(indices) if packed is None else next(packed)
            yield indices, torch.tensor(images).movedim(-1, -3)  # copied: rows of an archive are read-only

    def _stacked(self, indices: range) -> np.ndarray:
        with ThreadPoolExecutor(_THREADS) as pool:
            images = list(pool.map(self.image, indices))
        shapes = {image.shape[:2] for image in images}
        if len(shapes) > 1:
            raise RunError(f"{self.path} mixes images of the sizes {sorted(shapes)}; sample again")
        return np.stack(images)


def is_video(record: dict[str, Any]) -> bool:
    """Whether a run.json is of videos: their size has frames."""
    size = record.get("size")
    return isinstance(size, list) and len(size) == 3


def noise_differences(a: Run, b: Run) -> list[str]:
    """What makes images of one index start from other noise, or mean something else; one line for each.

    Other steps of one sampler are no difference: an image begins from the noise of (seed, index), however many follow.
    """
    keys = [key for key in NOISE_KEYS if a.record.get(key) != b.record.get(key)]
    return [] if keys == ["steps"] else [_difference(key, a.record, b.record) for key in keys]


def _difference(key: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    one, other = ours.get(key), theirs.get(key)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        at = next(i for i, (x, y) in enumerate(zip(one, other, strict=True)) if x != y)
        return f"{key}: {_short(one[at])} and {_short(other[at])} at {at}"
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [k for k in {**one, **other} if one.get(k) != other.get(k)]
        return f"{key}: " + ", ".join(f"{k} {_short(one.get(k))} and {_short(other.get(k))}" for k in keys)
    return f"{key}: {_short(one)} and {_short(other)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
