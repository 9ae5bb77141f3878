"""The two pictures of a report: quality against cost, and the same images of every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from calibration.drift import Images
from calibration.picture import save_grid
from eval.paper import Table
from eval.report_rows import Row, cost_name, costs, counts_whole_run
from eval.runs import Run
from plans.files import write_whole

OURS, PAPER = "#1f6f8b", "#b08968"
GRID_COLUMNS = 8
GRID_SIDE = 192  # pixels of an image in the grid, so that a page of large images stays small


def pareto(rows: Sequence[Row], paper: Table | None, file: Path) -> bool:
    """A panel for each quality there is; the paper's own curve in it where its numbers should be ours.

    Returns:
        Whether there was anything to draw.
    """
    panels = [panel for panel in (_distance, _score, _psnr, _lpips) if panel(rows)]
    if not panels:
        return False
    columns = len(panels) if len(panels) < 4 else 2
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.7, 9.4 / columns) * columns, 3.7 * lines), dpi=130, facecolor="white")
    for axes, panel in zip(figure.subplots(lines, columns, squeeze=False).flat, panels, strict=True):
        drawn = panel(rows)
        _draw(axes, drawn, f"{cost_name(rows)}, % of full")
        if paper and drawn["paper"] and not counts_whole_run(rows):
            points = [(row.attention_flops, getattr(row, drawn["paper"])) for row in paper.rows]
            known = [(x, y) for x, y in points if x is not None]
            if known:
                axes.plot(*zip(*known, strict=True), "s--", color=PAPER, markersize=4, linewidth=1, label="the paper")
                axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    write_whole(file, lambda beside: figure.savefig(beside, format="png", metadata={"Software": None}))
    return True


def _draw(axes: Any, drawn: dict[str, Any], cost: str) -> None:
    points: list[tuple[str, float, float]] = drawn["points"]
    names, x, y = zip(*points, strict=True)
    if drawn.get("band"):
        low, high = zip(*drawn["band"], strict=True)
        axes.fill_between(x, low, high, color=OURS, alpha=0.15, linewidth=0, label="5 % to 95 % of the images")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.plot(x, y, "o-", color=OURS, markersize=5, linewidth=1.4)
    for name, at, value in zip(names, x, y, strict=True):
        axes.annotate(name, (at, value), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    axes.set_xlim(0, max(105, 1.05 * max(x)))
    axes.margins(y=0.15)
    axes.set_xlabel(cost)
    axes.set_title(f"{drawn['title']}\n({drawn['better']} is better)", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _distance(rows: Sequence[Row]) -> dict[str, Any]:
    return _metric(rows, "fid", "lower", "fid")


def _score(rows: Sequence[Row]) -> dict[str, Any]:
    return _metric(rows, "is", "higher", "inception_score")


def _metric(rows: Sequence[Row], metric: str, better: str, paper: str) -> dict[str, Any]:
    known = [(row, percent) for row, percent in zip(rows, costs(rows), strict=True) if metric in row.measures]
    if not known:
        return {}
    points = [(row.name, percent, float(row.measures[metric]["value"])) for row, percent in known]
    return {"title": known[0][0].measures[metric]["title"], "better": better, "points": points, "paper": paper}


def _psnr(rows: Sequence[Row]) -> dict[str, Any]:
    return _similar(rows, "psnr", "PSNR to the full images, dB, median", "higher")


def _lpips(rows: Sequence[Row]) -> dict[str, Any]:
    name = next((row.similarity["lpips"] for row in rows if row.similarity), None)
    return _similar(rows, "lpips", f"{name} to the full images, median", "lower")


def _similar(rows: Sequence[Row], measure: str, title: str, better: str) -> dict[str, Any]:
    """Rows whose images are not equal to the full ones: an infinite PSNR has no place on an axis."""
    points, band = [], []
    for row, percent in zip(rows, costs(rows), strict=True):
        spread = (row.similarity or {}).get("summary", {}).get(measure)
        if spread and all(spread[key] is not None and math.isfinite(spread[key]) for key in ("median", "p5", "p95")):
            points.append((row.name, percent, spread["median"]))
            band.append((spread["p5"], spread["p95"]))
    return {"title": title, "better": better, "points": points, "band": band, "paper": None} if points else {}


def grid(rows: Sequence[Row], file: Path, names: dict[int, str] | None = None) -> list[int]:
    """A row of images for each run, the same indices in each, spread evenly over the run; the indices are returned."""
    count = rows[0].run.n
    indices = [i * count // min(GRID_COLUMNS, count) for i in range(min(GRID_COLUMNS, count))]
    labelled = [f"image {i}" + (f"\n{names[i]}" if names and i in names else "") for i in indices]
    percents = costs(rows)
    lines = [
        (f"{row.name}\n{percent:.0f} % MACs", _images(row.run, indices))
        for row, percent in zip(rows, percents, strict=True)
    ]
    save_grid(file, lines, labelled, "The same noise and label in every column")
    return indices


def _images(run: Run, indices: Sequence[int]) -> Images:
    shown = []
    for index in indices:
        image = Image.fromarray(run.image(index))
        image.thumbnail((GRID_SIDE, GRID_SIDE), Image.Resampling.LANCZOS)
        shown.append(torch.from_numpy(np.array(image)))
    return Images(torch.empty(0), torch.stack(shown))
