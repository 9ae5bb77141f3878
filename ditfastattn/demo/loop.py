"""The training loop that the demo's transformers share: rate, moving average, checkpoints, losses so far."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

Losses = Callable[[nn.Module, torch.Generator], tuple[Tensor, Tensor]]
"""Draws a batch of B with the generator and returns (L_simple, L_vlb), each (B,)."""


@dataclass
class Recipe:
    """The numbers of a run. `iterations` may change between a run and its continuation: the rate stays
    level until the last `decay` share of it, so only the end depends on the total.

    With `seconds`, or a deadline, the rate falls by whichever of iterations and time is further on, and the run ends
    there: the length of a run on a GPU of unknown speed."""

    iterations: int = 20_000
    batch: int = 512
    lr: float = 1e-3
    warmup: int = 500
    decay: float = 0.3
    weight_decay: float = 0.0
    ema: float = 0.9995
    drop_label: float = 0.1
    seed: int = 0
    seconds: float | None = None

    def rate(self, i: int, spent: float = 0.0) -> float:
        """Learning rate of iteration i, with a share of the run's time `spent`: warm-up, level, then a straight line
        to zero."""
        tail = max(1.0, self.decay * self.iterations)
        end = min((self.iterations - i) / tail, (1 - spent) / self.decay)
        return self.lr * min(1.0, (i + 1) / max(1, self.warmup), max(0.0, end))

    def ended(self, i: int, spent: float) -> bool:
        """Whether a run is over after i iterations and this share of its time."""
        return i >= self.iterations or spent >= 1


@dataclass
class Run:
    """What a checkpoint holds: the model, its moving average, the optimiser, the losses so far, and how long it
    took, without what each session spends on its first iteration, which compiles.

    `best` is the moving average as it was when its held-out loss was least: late in a run the loss may rise again."""

    model: Any
    ema: Any
    optimiser: torch.optim.Optimizer
    iteration: int = 0
    elapsed: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, model: nn.Module, recipe: Recipe) -> Run:
        fused = next(model.parameters()).device.type == "cuda"
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=fused
        )
        return cls(model, copy.deepcopy(model).requires_grad_(False), optimiser)

    def save(self, path: Path) -> None:
        """Write beside `path` and rename, so that a run cut short leaves the last whole checkpoint."""
        state = {name: getattr(self, name).state_dict() for name in ("model", "ema", "optimiser")}
        aside = path.with_suffix(".partial")
        rest = {"iteration": self.iteration, "elapsed": self.elapsed, "curve": self.curve, "best": self.best}
        torch.save(state | rest, aside)
        os.replace(aside, path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=next(self.model.parameters()).device, weights_only=True)
        for name in ("model", "ema", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.iteration, self.elapsed, self.curve = state["iteration"], state["elapsed"], state["curve"]
        self.best = state["best"]

    def held_out(self, loss: float) -> None:
        """Keeps the moving average if no held-out loss before was as small."""
        if loss < min((point["held_out"] for point in self.curve if "held_out" in point), default=float("inf")):
            self.best = {name: value.detach().clone() for name, value in self.ema.state_dict().items()}

    def take_best(self) -> None:
        """The moving average goes back to its least held-out loss, where one was measured."""
        if self.best:
            self.ema.load_state_dict(self.best)


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def compile_each(blocks: Iterable[nn.Module]) -> None:
    """One block at a time: the blocks are alike, so one compilation serves all."""
    for block in blocks:
        block.compile()


def train(run: Run, recipe: Recipe, losses: Losses, checkpoint: Path | None = None, save_every: int = 2000,
          measure: Callable[[nn.Module], float] | None = None, measure_every: int = 1000,
          seconds: float | None = None, deadline: float | None = None) -> bool:  # fmt: skip
    """Train to the recipe's end or for `seconds`, and say whether that end was reached.

    Each iteration seeds its own random numbers, so a continued run draws what an uninterrupted one would.

    Args:
        measure: the held-out loss of the moving average, for the curve.
        seconds: pause after this time; another call goes on.
        deadline: a time of `time.monotonic` by which the run is over, in the place of the recipe's `seconds`.
    """
    params, ema = list(run.model.parameters()), list(run.ema.parameters())
    device = params[0].device
    generator = torch.Generator(device)
    sums, counted = torch.zeros(2, device=device), 0
    started = resumed = time.monotonic()
    first, before = run.iteration, run.elapsed
    bar = tqdm(total=recipe.iterations, initial=run.iteration, desc="transformer", unit="it", mininterval=5)

    def spent() -> float:
        if deadline is not None:
            return (time.monotonic() - started) / max(deadline - started, 1e-9)
        return 0.0 if recipe.seconds is None else run.elapsed / recipe.seconds

    share = spent() if deadline is None or deadline > started else 1.0
    while not recipe.ended(run.iteration, share):
        i = run.iteration
        for group in run.optimiser.param_groups:
            group["lr"] = recipe.rate(i, share)
        generator.manual_seed(recipe.seed * 1_000_003 + i)
        simple, bound = (term.mean() for term in losses(run.model, generator))
        run.optimiser.zero_grad(set_to_none=True)
        (simple + bound).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        run.optimiser.step()
        decay = min(recipe.ema, (1 + i) / (10 + i))
        torch._foreach_lerp_(ema, params, 1 - decay)
        sums += torch.stack([simple.detach(), bound.detach()])
        counted, run.iteration = counted + 1, i + 1
        bar.update()
        if run.iteration == first + 1:
            resumed = time.monotonic()
        run.elapsed = before + time.monotonic() - resumed
        share = spent()
        last = recipe.ended(run.iteration, share)
        if run.iteration % 100 == 0 or last:
            simple_mean, bound_mean = (sums / counted).tolist()
            sums, counted = torch.zeros_like(sums), 0
            point = {"iteration": float(run.iteration), "simple": simple_mean, "bound": bound_mean}
            if measure is not None and (run.iteration % measure_every == 0 or last):
                point["held_out"] = measure(run.ema)
                run.held_out(point["held_out"])
            run.curve.append(point)
            bar.set_postfix(simple=f"{simple_mean:.4f}", bound=f"{bound_mean:.4f}")
        out_of_time = seconds is not None and time.monotonic() - started > seconds
        if checkpoint is not None and (last or out_of_time or run.iteration % save_every == 0):
            run.save(checkpoint)
        if out_of_time:
            break
    bar.close()
    return recipe.ended(run.iteration, share)
