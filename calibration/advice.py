"""The front of (time, drift) for a model here, as a page and a picture, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from calibration.pool import FEWER, calls_of
from calibration.speedup import Front, Tried
from ditfastattn.samplers import inference_steps
from plans.files import write_text, write_whole

matplotlib.use("Agg", force=False)

ATTENTION = "attention"
LITTLE = 0.5  # dB, below which one way is not called nearer than another
COLOURS = {FEWER: "#d1495b", ATTENTION: "#2e7cbf", "best": "#1b2a49"}


def advise(
    folder: Path,
    model: str,
    how: str,
    steps: int,
    full: float,
    by_table: float,
    fronts: Sequence[tuple[float, Front, float]],
    scheduler: Any,
) -> Path:
    """Writes ``advice.md`` and ``advice.png`` and returns the page.

    Args:
        how: what was timed, in words.
        full: milliseconds of the uncompressed run of ``steps`` steps, by the clock.
        by_table: the same as the costs of plans are predicted.
        fronts: with the speedup that each was asked for, and the one measured of its best plan.
        scheduler: by whose steps plans are told, as num_inference_steps counts them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        "| asked for | fewer steps | attention compressed | best plan found |",
        "|---|---|---|---|",
        *(
            f"| {speedup:.2f} x | {_cell(front.best_of(FEWER), by_table, scheduler)} "
            f"| {_cell(front.best_of(ATTENTION), by_table, scheduler)} "
            f"| {_cell(front.best, by_table, scheduler)}, measured {measured:.2f} x: {front.best.kind} |"
            for speedup, front, measured in fronts
        ),
    ]
    lines = [
        f"# What pays: {model}, {steps} steps",
        "",
        f"Uncompressed {full:.1f} ms ({how}). A cell: predicted speedup, typical drift of the final latents from the "
        f"uncompressed ones (geometric mean of relative L2) on noise that nothing was searched on.",
        "",
        *rows,
        "",
        *(f"- {sentence(speedup, front, scheduler)}" for speedup, front, _ in fronts),
        "",
        "![drift against time](advice.png)",
    ]
    _plot(folder / "advice.png", model, by_table, fronts)
    write_text(folder / "advice.md", "\n".join(lines) + "\n")
    return folder / "advice.md"


def steps_of(tried: Tried, scheduler: Any) -> str:
    """ "12 steps", as num_inference_steps counts them: some samplers call the model twice in one."""
    count = inference_steps(scheduler, tried.plan.steps)
    return f"{count} step" if count == 1 else f"{count} steps"


def name_of(tried: Tried, scheduler: Any) -> str:
    """ "cells, 12 steps"; "skipped steps, 12 steps, 7 model calls"."""
    return f"{tried.kind}, {steps_of(tried, scheduler)}{calls_of(tried.plan)}"


def sentence(speedup: float, front: Front, scheduler: Any) -> str:
    """What to do for one speedup, and what the other way would cost."""
    best, fewer = front.best, front.best_of(FEWER)
    name = name_of(best, scheduler)
    if fewer is None:
        return f"{speedup:.2f} x: {name}; the sampler alone cannot come down so far."
    nearer = 20 * math.log10(_unseen(fewer) / _unseen(best))
    few = steps_of(fewer, scheduler)
    if nearer < LITTLE:
        return f"{speedup:.2f} x: take {few}; compression adds nothing here."
    return f"{speedup:.2f} x: take the plan ({name}); its images are {nearer:.1f} dB nearer than those of {few}."


def _cell(tried: Tried | None, full: float, scheduler: Any) -> str:
    if tried is None:
        return "not so far down"
    return f"{steps_of(tried, scheduler)}, {full / tried.cost:.2f} x, {_unseen(tried):.4f}"


def _unseen(tried: Tried) -> float:
    assert tried.unseen is not None, "finalists have been tried on unseen noise"
    return tried.unseen.typical


def _plot(path: Path, model: str, full: float, fronts: Sequence[tuple[float, Front, float]]) -> None:
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    for name, label in ((FEWER, "fewer steps"), (ATTENTION, "attention compressed"), ("best", "best plan found")):
        found = [front.best if name == "best" else front.best_of(name) for _, front, _ in fronts]
        points = sorted((full / one.cost, _unseen(one)) for one in found if one is not None)
        axis.plot([x for x, _ in points], [y for _, y in points], "o-", color=COLOURS[name], label=label)
    axis.set(
        xlabel="speedup, predicted from measured times",
        ylabel="typical drift of the final latents",
        yscale="log",
        title=f"{model}: what time costs",
    )
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    write_whole(path, lambda beside: figure.savefig(beside, format="png"))
