"""A folder of samples with its record, as ``python -m eval sample`` leaves it, for reading.

``run.json`` says what made the images; they lie in ``images/000000.png ...`` or in ``samples.npz`` (``arr_0``, uint8,
N,H,W,3), and the latents, where they were asked for, in ``latents/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditfastattn.errors import DitFastAttnError

NOISE_KEYS = ("n", "seed", "labels", "sampler", "steps")  # two runs that differ in one of these are of other noise


class RunError(DitFastAttnError):
    """A folder of samples cannot be read, or two cannot be compared."""


@dataclass(frozen=True)
class Run:
    """``record``: what run.json holds."""

    path: Path
    record: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Raises RunError: no run.json there, not one of ours, or the run is not finished."""
        path = Path(path)
        file = path / "run.json"
        if not path.is_dir():
            raise RunError(f"{path} is no folder; name one that python -m eval sample wrote")
        try:
            record = json.loads(file.read_text())
        except FileNotFoundError:
            raise RunError(f"{path} holds no run.json; name a folder that python -m eval sample wrote") from None
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise RunError(f"{file} is not JSON; sample into another folder again") from None
        if not isinstance(record, dict) or not isinstance(record.get("n"), int):
            raise RunError(f"{file} does not say how many images there are (n); sample into another folder again")
        run = cls(path, record)
        run._check_count()
        return run

    @property
    def n(self) -> int:
        return int(self.record["n"])

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def _check_count(self) -> None:
        if self._archive is not None:
            found = len(self._archive)
        else:
            found = sum(self.image_path(index).exists() for index in range(self.n))
        if found != self.n:
            raise RunError(
                f"{self.path} has {found} of its {self.n} images; run the same python -m eval sample again, which goes "
                "on where it stopped"
            )

    def image_path(self, index: int) -> Path:
        return self.path / "images" / f"{index:06d}.png"

    @cached_property
    def _archive(self) -> np.ndarray | None:
        file = self.path / "samples.npz"
        if not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as archive:
                images = archive["arr_0"]
        except (ValueError, KeyError, OSError) as error:
            raise RunError(f"{file} is no .npz with arr_0 ({error}); sample again") from None
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise RunError(f"{file} holds {images.dtype} {images.shape}; expected uint8 (N, H, W, 3)")
        return images

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8. Raises RunError for a file that is no image."""
        if self._archive is not None:
            return self._archive[index]
        file = self.image_path(index)
        try:
            with Image.open(file) as picture:
                return np.asarray(picture.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise RunError(f"{file} is no readable image ({str(error)[:80]}); delete it and sample again") from None

    @property
    def has_latents(self) -> bool:
        return (self.path / "latents").is_dir()

    def latent(self, index: int) -> Tensor:
        """(C, h, w) float64. Raises RunError where it cannot be read."""
        file = self.path / "latents" / f"{index:06d}.npy"
        try:
            return torch.from_numpy(np.load(file, allow_pickle=False)).double()
        except (ValueError, OSError) as error:
            raise RunError(f"{file} holds no readable latents ({str(error)[:80]}); sample again") from None

    def batches(self, size: int) -> Iterator[tuple[range, Tensor]]:
        """Indices and images (B, 3, H, W) uint8. Raises RunError where the images are not all of one size."""
        for start in range(0, self.n, size):
            indices = range(start, min(start + size, self.n))
            images = [self.image(index) for index in indices]
            shapes = {image.shape for image in images}
            if len(shapes) > 1:
                raise RunError(f"{self.path} mixes images of the sizes {sorted(s[:2] for s in shapes)}; sample again")
            yield indices, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def noise_differences(a: Run, b: Run) -> list[str]:
    """What makes images of one index start from other noise, or mean something else; one line for each."""
    return [_difference(key, a.record, b.record) for key in NOISE_KEYS if a.record.get(key) != b.record.get(key)]


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
