"""Quality against the MACs of attention and MLPs, one panel for each model and number of steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

STYLES = {  # method -> colour, marker
    "fewer steps": ("black", "o"),
    "FORA": ("tab:olive", "v"),
    "TaylorSeer-like, order 1": ("tab:cyan", "^"),
    "TaylorSeer-like, order 2": ("tab:blue", "^"),
    "skip": ("tab:gray", "s"),
    "PAB": ("tab:brown", "D"),
    "DiTFastAttn": ("navy", "x"),
    "ours, cells, attention": ("tab:pink", "*"),
    "ours, cells, attention, all steps": ("tab:purple", "."),
    "ours, cells": ("tab:orange", "*"),
    "ours, cells, all steps": ("gold", "."),
    "ours, together": ("tab:red", "*"),
    "ours, together, all steps": ("tab:green", "."),
}


def curve_of(row: dict[str, Any]) -> str:
    """The line that a row stands on."""
    _, _, order = row["setting"].partition(", order ")
    return f"{row['method']}, order {order}" if row["method"] == "TaylorSeer-like" else str(row["method"])


def plot(results: Sequence[dict[str, Any]], file: Path) -> None:
    """PSNR to the uncompressed images of the base's steps; what equals them has none and is left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [
        (result, base) for result in results for base in dict.fromkeys(row["base_steps"] for row in result["rows"])
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.4 + 5 * len(panels), 5), squeeze=False, sharey=True)
    for axis, (result, base) in zip(axes[0], panels, strict=True):
        rows = [row for row in result["rows"] if row["base_steps"] == base and row["psnr"] is not None]
        for name, (colour, marker) in STYLES.items():
            points = sorted((row["total_macs"], row["psnr"]) for row in rows if curve_of(row) == name)
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1.2, label=name)
        axis.set(xlabel="MACs of attention and MLPs, % of the base's", title=f"{result['model']}, {base} steps")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("PSNR to the base's images, dB")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="center right")
    figure.tight_layout(rect=(0, 0, 1 - 2.2 / figure.get_figwidth(), 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)
