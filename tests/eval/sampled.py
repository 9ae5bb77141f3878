"""What ``python -m eval sample`` leaves in the folder of a run, and how a run is ended early."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import sample

Command = Callable[..., Path]
STEPS = 4


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but run.json, which tells when it was made."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "run.json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def pixels(folder: Path, index: int) -> np.ndarray:
    return np.asarray(Image.open(folder / "images" / f"{index:06d}.png"))


def record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "run.json").read_text())


@contextmanager
def ended_in_the_second_batch() -> Iterator[None]:
    """By Ctrl-C, before the batch is drawn."""
    draw, drawn = sample.Artist.draw, iter(range(9))

    def ending(self: sample.Artist, indices: range) -> object:
        if next(drawn) == 1:
            raise KeyboardInterrupt
        return draw(self, indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample.Artist, "draw", ending)
        yield
