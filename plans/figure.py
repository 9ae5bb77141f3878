"""A plan as PNG or SVG, layers x steps, with the MACs of each step under it. Needs matplotlib.

The same plan gives the same bytes: no dates, no random ids, no user style.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from os import PathLike
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from plans.errors import PlanError
from plans.files import write_whole
from plans.macs import plan_macs, shares, shown_macs
from plans.model import SiteName
from plans.render import COLORS, called, costline, headline, legend_order, noteline, timestep_label
from plans.schema import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

# Inches. Cells are nearly square until a long run would make the picture wider than a page can hold.
_CELL_HEIGHT = 0.17
_CELL_WIDTH = 0.19
_WIDEST_GRID = 13.0
_NARROWEST_GRID = 7.0
_STRIP = 0.75
_CURVE = 0.6  # sensitivities, where the plan has them
_GAP = 0.14
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.75, 0.25, 1.24, 0.55
_NOTE, _NOTE_LINES = 0.18, 3  # a line of a plan's note, and how many are shown
_NOTE_SIZE = 8.0  # points
_LETTER = 0.068  # of a label that stands upright beside its grid
_DPI = 160
_STORE = "#9db4c0"
_STEP = "#4a5568"


def picture(plan: Plan, path: str | PathLike[str]) -> None:
    """Draw a plan into a .png or .svg file; its folder is made.

    Raises:
        PlanError: another suffix, no matplotlib, or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PlanError(f"{path} does not end in .png or .svg; give the picture one of these names")
    try:
        import matplotlib
    except ImportError:
        raise PlanError("pictures need matplotlib, which is not installed; pip install matplotlib") from None
    metadata = {"Software": None} if suffix == ".png" else {"Date": None}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt="ditfastattn", fonttype="path")
        matplotlib.rc("font", size=9)
        drawn = figure(plan)
        write_whole(path, lambda beside: drawn.savefig(beside, dpi=_DPI, format=suffix[1:], metadata=metadata))


def figure(plan: Plan) -> Figure:
    """The drawing itself, for use in a notebook."""
    from matplotlib.figure import Figure

    grid_width = min(_WIDEST_GRID, max(_NARROWEST_GRID, _CELL_WIDTH * plan.steps))
    heights = {
        site: max(_CELL_HEIGHT * plan.model.shape(site).layers, _LETTER * len(_label(plan, site)) + 0.1, 0.5)
        for site in plan.sites
    }
    width = _LEFT + grid_width + _RIGHT
    weights = plan.calibration.sensitivity if plan.calibration else ()
    curve_height = _CURVE + _GAP if weights else 0.0
    head = _TOP + _NOTE * len(_note(plan, width))
    height = head + sum(heights.values()) + _GAP * len(heights) + curve_height + _STRIP + _BOTTOM
    fig = Figure(figsize=(width, height), facecolor="white")

    def box(bottom: float, box_height: float) -> tuple[float, float, float, float]:
        return (_LEFT / width, bottom / height, grid_width / width, box_height / height)

    top = height - head
    for site, grid_height in heights.items():
        _draw_grid(fig.add_axes(box(top - grid_height, grid_height)), plan, site)
        top -= grid_height + _GAP
    if weights:
        _draw_sensitivities(fig.add_axes(box(top - _CURVE, _CURVE)), weights)
    _draw_strip(fig.add_axes(box(_BOTTOM, _STRIP)), plan)
    _write_titles(fig, plan, left=_LEFT / width, height=height)
    return fig


def _label(plan: Plan, site: SiteName) -> str:
    if len(plan.sites) == 1:
        return "layer"
    return "model" if site == "model" else f"{site} layer"


def _draw_grid(axes: Axes, plan: Plan, site: SiteName) -> None:
    from matplotlib.collections import PolyCollection

    layers = plan.model.shape(site).layers
    boxes, colors = [], []
    for layer in range(layers):
        start = 0
        for method, run in groupby(row[layer] for row in called(plan, site)):  # few boxes keep an SVG small
            stop = start + len(list(run))
            if method is None:
                start = stop
                continue
            boxes.append([(start, layer), (stop, layer), (stop, layer + 1), (start, layer + 1)])
            colors.append(COLORS[method])
            start = stop
    axes.add_collection(PolyCollection(boxes, facecolors=colors, linewidths=0))
    if plan.steps <= 100:  # narrower cells would show moire instead of lines
        axes.vlines(range(1, plan.steps), 0, layers, colors="white", linewidth=0.5)
    axes.hlines(range(1, layers), 0, plan.steps, colors="white", linewidth=0.5)
    axes.set_xlim(0, plan.steps)
    axes.set_ylim(layers, 0)
    every = 1 if layers <= 12 else 3 if layers <= 36 else 5
    labelled = range(0, layers, every)
    axes.set_yticks([layer + 0.5 for layer in labelled], [str(layer) for layer in labelled])
    axes.set_ylabel(_label(plan, site))
    for spine in axes.spines.values():
        spine.set_color("#888888")
        spine.set_linewidth(0.6)
    axes.tick_params(axis="y", length=2)
    if site != "attn":  # the timesteps stand once, at the top
        axes.set_xticks([])
        return
    steps = _tick_steps(plan)
    axes.set_xticks([step + 0.5 for step in steps], [timestep_label(plan.sampler.timesteps[step]) for step in steps])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("timestep", fontsize=8, color=_STEP)
    axes.tick_params(axis="x", labelsize=7.5, colors=_STEP, length=2)


def _draw_sensitivities(axes: Axes, weights: Sequence[float]) -> None:
    """How far the final latents move for an error of a step; on a log scale, as they span decades."""
    steps = [step for step, weight in enumerate(weights) if weight > 0]  # step 0 has none
    axes.plot([step + 0.5 for step in steps], [weights[step] for step in steps], ".-", color=_STEP, linewidth=1)
    axes.set_yscale("log")
    axes.set_xlim(0, len(weights))
    axes.set_xticks([])
    axes.set_ylabel("drift /\nerror", fontsize=7.5)
    axes.tick_params(axis="y", which="both", length=2, labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_strip(axes: Axes, plan: Plan) -> None:
    macs = shown_macs(plan)
    steps = [step + 0.5 for step in range(plan.steps)]
    stores = [100 * store / macs.full_step for store in macs.stores]
    axes.bar(steps, macs.step_percents, width=0.86, color=_STEP, linewidth=0)
    if macs.residual_store:
        axes.bar(steps, stores, width=0.86, bottom=macs.step_percents, color=_STORE, linewidth=0)
    axes.axhline(100, color="#888888", linewidth=0.6, linestyle=(0, (3, 3)))
    axes.set_xlim(0, plan.steps)
    top = max(100.0, *(percent + store for percent, store in zip(macs.step_percents, stores, strict=True)))
    axes.set_ylim(0, top * 1.04)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel("MACs %")
    ticks = _tick_steps(plan)
    axes.set_xticks([step + 0.5 for step in ticks], [str(step) for step in ticks])
    axes.set_xlabel("step")
    axes.tick_params(length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _write_titles(fig: Figure, plan: Plan, *, left: float, height: float) -> None:
    from matplotlib.patches import Patch

    room = fig.get_size_inches()[0] - _LEFT - 0.1
    title, cost = headline(plan), costline(plan)
    # Sizes in points; a bold character of DejaVu Sans is 0.70 points wide per point of size on average, another 0.60.
    title_size = min(10.5, 72 * room / (0.70 * len(title)))
    cost_size = min(8.5, 72 * room / (0.60 * len(cost)))
    fig.text(left, 1 - 0.22 / height, title, fontsize=title_size, fontweight="bold", va="center")
    fig.text(left, 1 - 0.44 / height, cost, fontsize=cost_size, color="#333333", va="center")
    below = 0.68  # inches from the top to the middle of the legend
    for line in _note(plan, fig.get_size_inches()[0]):
        fig.text(left, 1 - (below - 0.04) / height, line, fontsize=_NOTE_SIZE, color="#333333", va="center",
                 parse_math=False)  # fmt: skip
        below += _NOTE
    share = shares(plan)
    handles = [
        Patch(
            facecolor=COLORS[method],
            edgecolor="#888888",
            linewidth=0.5,
            label=f"{method} {share[method]:.0f} %",
        )
        for method in legend_order(plan)
    ]
    if plan.skipped:
        handles.append(Patch(facecolor="white", edgecolor="#888888", linewidth=0.5, label="not run"))
    if plan_macs(plan).residual_store:
        handles.append(Patch(facecolor=_STORE, linewidth=0, label="residual store"))
    fig.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(left, 1 - below / height),
        ncol=len(handles),
        frameon=False,
        fontsize=8.5,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.1,
        handleheight=1.0,
        columnspacing=1.4,
        handletextpad=0.5,
    )


def _note(plan: Plan, width: float) -> list[str]:
    """The note in as many lines as are shown in a picture of so many inches; its end is left out where it is longer."""
    letters = int(72 * (width - _LEFT - 0.1) / (0.60 * _NOTE_SIZE))
    return wrap(noteline(plan), letters, max_lines=_NOTE_LINES, placeholder="...")


def _tick_steps(plan: Plan) -> range:
    """A tick every 5, 10 or 20 steps: about ten of them."""
    for every in (1, 2, 5, 10, 20, 50):
        if plan.steps <= 12 * every:
            return range(0, plan.steps, every)
    return range(0, plan.steps, 100)
