"""A grid of images, full beside compressed, with what they are."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from calibration.drift import Images
from plans.files import write_whole

matplotlib.use("Agg", force=False)


def save_grid(path: Path, rows: Sequence[tuple[str, Images]], names: Sequence[str], title: str) -> None:
    """One row of images per (row name, images), one column per label or prompt; written whole or not at all.

    Of a video its middle frame.
    """
    columns = len(names)
    figure = Figure(figsize=(max(1.15 * columns + 1.3, 5.0), 1.2 * len(rows) + 0.75), dpi=130)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for r, (row_name, images) in enumerate(rows):
        for c in range(columns):
            axis = axes[r, c]
            shown = images.pixels[c]
            axis.imshow(np.asarray(shown[len(shown) // 2] if shown.dim() == 4 else shown), interpolation="lanczos")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("#cccccc")
            if r == 0:
                axis.set_title(_shorten(names[c]), fontsize=7, parse_math=False)  # a prompt may hold $
        axes[r, 0].set_ylabel(row_name, fontsize=8, rotation=0, ha="right", va="center", labelpad=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.97), pad=0.4)
    write_whole(path, lambda beside: figure.savefig(beside, format="png"))


def _shorten(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
