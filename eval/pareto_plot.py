"""Quality against the MACs of attention and MLPs, and against measured speed: a column for each model and number of
steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.pareto_file import speed_alone, without_other_searches
from plans.files import write_whole

STYLES = {  # method -> colour, marker
    "fewer steps": ("black", "o"),
    "FORA": ("tab:olive", "v"),
    "TaylorSeer-like, order 1": ("tab:cyan", "^"),
    "TaylorSeer-like, order 2": ("tab:blue", "^"),
    "skip": ("tab:gray", "s"),
    "skip, order 1": ("lightgreen", "s"),
    "skip, order 2": ("tab:green", "s"),
    "PAB": ("tab:brown", "D"),
    "SmoothCache": ("darkgreen", "P"),
    "cache-dit DBCache": ("magenta", "p"),
    "cache-dit DBCache + TaylorSeer, order 1": ("mediumorchid", "h"),
    "cache-dit DBCache + TaylorSeer, order 2": ("indigo", "h"),
    "DiTFastAttn": ("navy", "x"),
    "ours, attention only": ("tab:orange", "*"),
    "ours": ("tab:red", "*"),
}
COSTS = {"total_macs": "MACs of attention and MLPs, % of the base's", "speedup": "speed-up, measured"}


def curve_of(row: dict[str, Any]) -> str:
    """The line that a row stands on: of forecasts, one for each order."""
    _, order, number = row["setting"].partition(", order ")
    return f"{row['method']}{order}{number}"


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """PSNR to the uncompressed images of the base's steps; what equals them has none and is left out.

    Against speed-ups only if some were measured, with their quartiles where these are known. Models that have only
    speed are not shown, nor are other searches for the same speedup.
    """
    rows = without_other_searches([row for row in rows if not speed_alone(row)])
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row["model"], row["base_steps"]) for row in rows))
    costs = [cost for cost in COSTS if any(row[cost] is not None and row["method"] != "full" for row in rows)]
    figure = Figure(figsize=(3.2 + 4.6 * len(panels), 4.6 * len(costs)))
    axes = figure.subplots(len(costs), len(panels), squeeze=False, sharey=True)
    shown = {}
    for line, cost in enumerate(costs):
        for column, (model, base) in enumerate(panels):
            axis, points = axes[line][column], [r for r in rows if (r["model"], r["base_steps"]) == (model, base)]
            for name, (colour, marker) in STYLES.items():
                curve = sorted(
                    (row[cost], row["psnr"])
                    for row in points
                    if curve_of(row) == name and row["psnr"] is not None and row[cost] is not None
                )
                if curve:
                    (shown[name],) = axis.plot(*zip(*curve, strict=True), color=colour, marker=marker, linewidth=1.2)
                for row in points if cost == "speedup" else ():
                    if curve_of(row) == name and row["psnr"] is not None and row.get("speedup_low") is not None:
                        axis.hlines(row["psnr"], row["speedup_low"], row["speedup_high"], color=colour, alpha=0.5)
            axis.set(xlabel=COSTS[cost], title=f"{model}, {base} steps")
            axis.grid(alpha=0.25)
        axes[line][0].set_ylabel("PSNR to the base's images, dB")
    figure.legend(shown.values(), shown.keys(), fontsize=8, loc="center right")
    figure.tight_layout(rect=(0, 0, 1 - 3 / figure.get_figwidth(), 1))
    write_whole(file, lambda beside: figure.savefig(beside, dpi=110, format="png"))
