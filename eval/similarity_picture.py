"""The best, the median and the worst pairs of two runs, with where they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from eval.runs import Run
from plans.files import write_whole

EACH = 3  # pairs of each kind
GAIN = 4  # of the difference


def chosen(psnr: np.ndarray, each: int = EACH) -> list[tuple[str, list[int]]]:
    """Indices of the best, the middle and the worst by PSNR (N,), no image twice; fewer where N is small."""
    order = np.argsort(-psnr, kind="stable").tolist()  # best first
    each = min(each, len(order) // 3) or 1
    middle = (len(order) - each) // 2
    groups = [("best", order[:each]), ("median", order[middle : middle + each]), ("worst", order[-each:])]
    seen: set[int] = set()
    kept = []
    for name, indices in groups:
        fresh = [index for index in indices if index not in seen]
        seen.update(fresh)
        if fresh:
            kept.append((name, fresh))
    return kept


def save_pairs(path: Path, a: Run, b: Run, psnr: np.ndarray, ssim: np.ndarray) -> None:
    """Three rows, ``b``, ``a`` and their difference enlarged; a block of columns for best, median and worst."""
    groups = chosen(psnr)
    columns = sum(len(indices) for _, indices in groups)
    widths = [width for _, indices in groups for width in (*[1.0] * len(indices), 0.15)][:-1]
    figure = Figure(figsize=(max(1.45 * columns + 1.4, 6.0), 5.3), dpi=130, facecolor="white")
    grid = figure.add_gridspec(3, len(widths), width_ratios=widths, wspace=0.06, hspace=0.05,
                               left=1.1 / figure.get_figwidth(), right=0.99, top=0.80, bottom=0.02)  # fmt: skip
    column = 0
    for kind, indices in groups:
        for place, index in enumerate(indices):
            ours, theirs = a.image(index), b.image(index)
            difference = np.abs(ours.astype(int) - theirs).astype(float) * GAIN
            rows = (
                (b.name_beside(a), theirs),
                (a.name_beside(b), ours),
                (f"difference\nx {GAIN}", difference.clip(0, 255).astype("u1")),
            )
            for row, (name, image) in enumerate(rows):
                axis = figure.add_subplot(grid[row, column])
                axis.imshow(image, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_color("#cccccc")
                if column == 0:
                    axis.set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)
                if row == 0:
                    head = f"{kind}\n" if place == 0 else "\n"
                    decibels = f"{psnr[index]:.1f} dB" if np.isfinite(psnr[index]) else "equal"
                    axis.set_title(f"{head}image {index}\n{decibels}\nSSIM {ssim[index]:.3f}", fontsize=7.5)
            column += 1
        column += 1  # the gap
    figure.suptitle(
        f"{a.name_beside(b)} against {b.name_beside(a)}: {len(psnr)} pairs ranked by PSNR", fontsize=10, y=0.985
    )
    write_whole(path, lambda beside: figure.savefig(beside, format="png", metadata={"Software": None}))
