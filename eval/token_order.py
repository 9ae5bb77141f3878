"""``python -m eval token-order``: does a window in another token order cost less accuracy at equal MACs?

Two measurements on the bundled demo. The loss of the model output when one layer takes a WA_RS step and all else is
FULL: along the uncompressed trajectory, over layers and steps, with residuals of several ages. And what calibration
makes of it: the attention MACs of whole plans.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from calibration.blocks import EagerBlocks
from calibration.calibrate import calibrate
from calibration.labels import choose_labels
from calibration.loss import mrae
from calibration.memory import keep_freed_memory
from calibration.probe import Probe
from calibration.replay import ReplayStep
from calibration.settings import Settings
from ditfastattn.execute import Context, Contexts
from ditfastattn.kernels.base import Kernel
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.models import adapt
from ditfastattn.models.base import ModelAdapter
from ditfastattn.order import Ordering
from ditfastattn.pipelines import load_pipeline
from ditfastattn.sampling import Denoiser, Trajectory, label_condition
from eval.arguments.token_order import parser
from eval.record import command_line, device_name, record
from plans import Method, TokenOrder, Window
from plans.files import write_text
from plans.macs import plan_macs, shares
from plans.method import TOKEN_ORDERS

NEAREST = "nearest"  # what no order of a 1-D window can give: each token sees those nearest to it in the grid
AGES = (1, 2, 4)  # steps since the residual was stored
COLORS = {"raster": "#1d2b45", "tile": "#2f7fc1", "hilbert": "#d1495b", NEAREST: "#999999"}


class Nearest(SDPA):
    """Each token sees the k tokens nearest to it in the grid, k being the mean number of keys of the window."""

    name = "nearest"

    def __init__(self, grid: tuple[int, int], window: Window) -> None:
        super().__init__()
        tokens = grid[0] * grid[1]
        cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).double()
        nearest = torch.cdist(cells, cells).argsort(dim=1, stable=True)[:, : round(window.pairs(tokens) / tokens)]
        self.mask = torch.zeros(tokens, tokens, dtype=torch.bool).scatter_(1, nearest, True)

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H, N, D)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2)
        return out if add is None else out + add


class Trial:
    """WA_RS steps in one order and window, on the trajectory of the uncompressed model."""

    def __init__(self, adapter: ModelAdapter, run: Trajectory, name: str, window: Window) -> None:
        grid = adapter.grid(*run.latents.shape[-2:])
        order: TokenOrder = next((order for order in TOKEN_ORDERS if order == name), "raster")
        ordering = Ordering(order, window, adapter.per_image)
        ordering.fit(grid, run.latents.device)
        kernel: Kernel = Nearest(grid, window) if name == NEAREST else SDPA()
        contexts: Contexts = {"attn": Context(kernel, window, adapter.guided_layout)}
        self.probe = Probe(adapter, contexts, ordering, residuals=True, blocks=EagerBlocks(adapter, contexts))
        self.run, self.name, self.window = run, name, window
        self.losses: dict[int, list[float]] = {age: [] for age in AGES}  # one a step and layer

    def step(self, latents: Sequence[Tensor], step: int) -> None:
        """Appends the loss of every layer and age at ``step``; ``latents[s]`` enter step s of the trajectory."""
        with self.probe as probe:
            stored = []
            for age in AGES:
                self.run.latents = latents[step - age]
                probe.commit(partial(self.run.predict, step - age), [Method.FULL] * probe.layers)
                stored.append([replace(cache) for cache in probe.caches])
            self.run.latents = latents[step]
            replay = ReplayStep(probe, partial(self.run.predict, step))
            reference = replay.reference()
            for age, caches in zip(AGES, stored, strict=True):
                probe.caches = caches
                self.losses[age] += [
                    float(mrae(reference, replay.attempt(layer, Method.WA_RS))) for layer in range(probe.layers)
                ]


@torch.no_grad()
def losses(pipe: Any, labels: Sequence[int], steps: int, every: int, seed: int) -> list[dict[str, Any]]:
    """One row a window, order and age of the residual."""
    adapter = adapt(pipe.transformer)
    denoiser = Denoiser(pipe.transformer, label_condition(pipe.transformer, labels), 4.0)
    run = Trajectory(denoiser, pipe.scheduler, steps, seed, range(len(labels)))
    latents = []
    for step in range(steps):
        latents.append(run.latents)
        run.advance(step, run.predict(step))
    tokens = adapter.spec().tokens
    windows = [Window(left=tokens // part, right=tokens // part) for part in (8, 16)]
    names = (*TOKEN_ORDERS, NEAREST)
    trials = [Trial(adapter, run, name, window) for window in windows for name in names]
    for step in tqdm(range(max(AGES), steps, every), desc="losses", unit="step", dynamic_ncols=True):
        for trial in trials:
            trial.step(latents, step)
    raster = {trial.window: trial.losses for trial in trials if trial.name == "raster"}
    return [
        {
            "window": trial.window.left,
            "order": trial.name,
            "residual_age": age,
            "mean": round(statistics.mean(trial.losses[age]), 6),
            "median": round(statistics.median(trial.losses[age]), 6),
            "of_raster": round(ratio(trial.losses[age], raster[trial.window][age]), 4),
            "cells": len(trial.losses[age]),
        }
        for trial in trials
        for age in AGES
    ]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Geometric mean of the ratios, cell by cell."""
    return math.exp(statistics.mean(math.log(a / b) for a, b in zip(ours, theirs, strict=True)))


def calibrated(
    pipe: Any, labels: tuple[int, ...], steps: int, thresholds: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    """One row a threshold and order: attention MACs and the share of windowed cells."""
    rows = []
    todo = [(threshold, order) for threshold in thresholds for order in TOKEN_ORDERS]
    for threshold, order in tqdm(todo, desc="calibrations", unit="plan", dynamic_ncols=True):
        settings = Settings(threshold=threshold, labels=labels, steps=steps, seed=seed, token_order=order)
        plan = calibrate(pipe, settings).plan
        windowed = sum(share for method, share in shares(plan).items() if method.windowed)
        rows.append(
            {
                "threshold": threshold,
                "order": order,
                "attention_macs": round(plan_macs(plan).percent, 3),
                "windowed_cells": round(windowed, 2),
            }
        )
    return rows


def plot(result: dict[str, Any], file: Path) -> None:
    """The mean loss by age of the residual, a panel for each window; MACs by threshold beside them."""
    import matplotlib.pyplot as plt

    windows = sorted({row["window"] for row in result["rows"]}, reverse=True)
    figure, panels = plt.subplots(1, len(windows) + 1, figsize=(11, 3.6), layout="constrained")
    top = 1.08 * max(row["mean"] for row in result["rows"])
    for panel, window in zip(panels, windows, strict=False):
        for order, color in COLORS.items():
            rows = [row for row in result["rows"] if (row["window"], row["order"]) == (window, order)]
            label = "nearest tokens (not a 1-D window)" if order == NEAREST else order
            style = "o--" if order == NEAREST else "o-"
            panel.plot([r["residual_age"] for r in rows], [r["mean"] for r in rows], style, color=color, label=label)
        panel.set(title=f"window of {window} on each side", xlabel="age of the residual, steps", ylim=(0, top))
        panel.set_xticks(AGES)
    panels[0].set_ylabel("mean loss (mrae) of a WA-RS step")
    panels[1].sharey(panels[0])
    for order in TOKEN_ORDERS:
        rows = [row for row in result["calibrated"] if row["order"] == order]
        panels[-1].plot([r["threshold"] for r in rows], [r["attention_macs"] for r in rows], "o-", color=COLORS[order])
    panels[-1].set(title="calibrated plans", xlabel="threshold", ylabel="attention MACs, % of full", ylim=(0, 100))
    panels[-1].set_xticks(sorted({row["threshold"] for row in result["calibrated"]}))
    panels[-1].legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="lower left")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write token_order.json and token_order.png."""
    arguments = parser().parse_args(argv)
    if arguments.steps <= max(AGES) or arguments.every < 1:
        raise SystemExit(f"--steps must be more than {max(AGES)}, the oldest residual, and --every at least 1")
    keep_freed_memory()
    pipe = load_pipeline("demo")
    labels = choose_labels(pipe, None, arguments.labels, arguments.seed)
    rows = losses(pipe, labels, arguments.steps, arguments.every, arguments.seed)
    plans = calibrated(pipe, labels, arguments.calibration_steps, arguments.thresholds, arguments.seed)
    result: dict[str, Any] = {
        **record(command_line("token-order", argv), device_name("cpu"), "float32"),
        "steps": arguments.steps,
        "every": arguments.every,
        "labels": list(labels),
        "calibration_steps": arguments.calibration_steps,
        "rows": rows,
        "calibrated": plans,
    }
    print("window  order     age      mean    median  / raster")
    for row in rows:
        print(f"{row['window']:>6}  {row['order']:<8}  {row['residual_age']:>3}  {row['mean']:8.5f}  "
              f"{row['median']:8.5f}  {row['of_raster']:8.3f}")  # fmt: skip
    for row in plans:
        print(f"threshold {row['threshold']:g}, {row['order']}: {row['attention_macs']:.1f} % of attention MACs, "
              f"{row['windowed_cells']:.1f} % of cells windowed")  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    plot(result, arguments.out / "token_order.png")
    write_text(arguments.out / "token_order.json", json.dumps(result, indent=1) + "\n")
    print(f"written: {arguments.out / 'token_order.json'}")
