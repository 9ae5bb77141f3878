"""The error of every cell a plan could have, from one uncompressed sampling run.

At each step what a method would put in the place of a layer's output is compared with that output: older outputs (AST),
their extrapolation (forecasts), the other branch's (ASC), a window with an older residual (WA_RS). How far the guided
prediction moves by the difference is measured at some of the steps (``calibration.response``), and between them taken
to be in proportion to its size.

Errors are squared relative L2 of the guided prediction, of one cell alone with all others full. What several do
together is left to whoever chooses, and to sampling with what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.probe import Probe
from calibration.response import respond
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.layout import both_halves
from plans import Method
from plans.forecast import forecast_weights

Key = tuple[Method, int, int]  # method, age, gap


@dataclass
class ErrorTable:
    """``squared[method, age, gap]``: (steps, L) float64; NaN where a method has nothing to reuse."""

    steps: int
    layers: int
    squared: dict[Key, np.ndarray] = field(default_factory=dict)
    block_runs: int = 0

    def __call__(self, step: int, method: Method, age: int, gap: int) -> np.ndarray:
        """Of every layer, (L,); infinite where a method has nothing to reuse, or was not measured."""
        if method is Method.FULL:
            return np.zeros(self.layers)
        key = (method, age, gap if method.forecasts else 0)
        if key not in self.squared:
            return np.full(self.layers, np.inf)
        return np.nan_to_num(self.squared[key][step], nan=np.inf, posinf=np.inf)


def measure(
    probe: Probe,
    run: Any,
    timesteps: Sequence[float],
    methods: Sequence[Method],
    *,
    longest: int,
    measured: int,
    projections: int = 1,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> ErrorTable:
    """Samples once, uncompressed, from where ``run`` stands to its end.

    Args:
        run: a sampling run with ``predict``, ``guided`` and ``advance``.
        methods: the candidates.
        longest: steps over which anything is reused at most.
        measured: steps at which the response is measured, spread evenly; at least 2.
        projections: random ones for each of them.
    """
    steps = len(timesteps)
    table = ErrorTable(steps, probe.layers)
    sizes: dict[Key, np.ndarray] = {}
    at = {round(step) for step in np.linspace(1, steps - 1, min(measured, steps - 1))}
    generator = torch.Generator().manual_seed(seed)
    begun = probe.block_runs
    past = _Past(probe, longest, any(method.windowed for method in methods))
    for step, timestep in enumerate(timesteps):
        probe.blocks.begin_step(timestep)

        def predict(step: int = step) -> Tensor:
            return run.predict(step)

        past.begin(timestep)
        if step in at:
            output, response = respond(probe, predict, run.guided, past.output_of, projections, generator)
        else:
            output, response = _plainly(probe, predict, past), None
        for layer in range(probe.layers) if step else ():
            for key, off in past.candidates(layer, methods):
                _at(sizes, key, table)[step, layer] = float(off.double().square().sum())
                if response is not None:
                    _at(table.squared, key, table)[step, layer] = response.error(layer, off)
        past.end()
        run.advance(step, output)
        if on_step:
            on_step(steps)
    for key, squared in table.squared.items():
        table.squared[key] = sizes[key] * _between(squared / sizes[key])
    table.block_runs = probe.block_runs - begun
    return table


class _Past:
    """What layers gave at the last steps, and what a method would make of it now."""

    def __init__(self, probe: Probe, longest: int, residuals: bool) -> None:
        self._probe, self._longest, self._residuals = probe, longest, residuals
        self._reference = SDPA()  # has gradients
        self._times: list[float] = []  # of the steps in the past, the last one first, then of the outputs below
        self._outputs: list[list[Tensor]] = [[] for _ in range(probe.layers)]
        self._cores: list[list[Tensor]] = [[] for _ in range(probe.layers)]  # residuals, before the out-projection
        self._now: list[Tensor] = []
        self._full: list[Tensor] = []

    def begin(self, timestep: float) -> None:
        self._times.insert(0, timestep)
        self._now, self._full = [], []

    def output_of(self, layer: int, hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        block = self._probe.adapter.blocks[layer]
        state = block.begin(hidden, *args, skip_attention=False, **kwargs)
        q, k, v = block.qkv(state, slice(0, state.hidden.shape[0]))
        core = self._reference.full(q, k, v)
        output = block.project(core)
        self._now.append(output.detach())
        if self._residuals:
            context = self._probe.contexts[block.site]
            with torch.no_grad():
                residual = context.kernel.residual(q.detach(), k.detach(), v.detach(), core.detach(), context.window)
            self._full.append(core.detach())
            self._cores[layer].insert(0, residual)
        return state, output

    def end(self) -> None:
        for outputs, now in zip(self._outputs, self._now, strict=True):
            outputs.insert(0, now)
            del outputs[3 * self._longest :]
        for cores in self._cores:
            del cores[self._longest :]

    def candidates(self, layer: int, methods: Sequence[Method]) -> Iterator[tuple[Key, Tensor]]:
        """How far off the layer's output would be by each method, age and gap: (rows, N, C)."""
        now = self._now[layer]
        for method in methods:
            if method.reuses_output:
                yield from self._reused(layer, method)
            elif method.windowed:
                yield from self._windowed(layer, method)
            elif method is Method.ASC:
                yield (method, 0, 0), self._shared(layer, now) - now

    def _reused(self, layer: int, method: Method) -> Iterator[tuple[Key, Tensor]]:
        past, now = self._outputs[layer], self._now[layer]
        read = method.outputs_read
        for age in range(1, min(self._longest, len(past)) + 1):
            for gap in range(1, self._longest + 1) if method.forecasts else (0,):
                which = [age + gap * i for i in range(read)]
                if which[-1] > len(past):
                    continue
                weights = forecast_weights(self._times[0], [self._times[back] for back in which])
                found = sum(weight * past[back - 1] for weight, back in zip(weights, which, strict=True))
                yield (method, age, gap), found - now

    def _windowed(self, layer: int, method: Method) -> Iterator[tuple[Key, Tensor]]:
        block, now = self._probe.adapter.blocks[layer], self._now[layer]
        residual, *older = self._cores[layer]
        for age, stored in enumerate(older[: self._longest], start=1):
            found = block.project(self._full[layer] - residual + stored)
            yield (method, age, 0), (self._shared(layer, found) if method.shares_guidance else found) - now

    def _shared(self, layer: int, output: Tensor) -> Tensor:
        """The conditional half for both."""
        layout = self._probe.contexts[self._probe.places[layer].site].layout
        return both_halves(output[layout.conditional_rows(len(output))])


def _plainly(probe: Probe, predict: Callable[[], Tensor], past: _Past) -> Tensor:
    """One model call without a response."""

    def behaviour(layer: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        probe.block_runs += 1
        return probe.adapter.blocks[layer].finish(*past.output_of(layer, hidden, *args, **kwargs))

    return probe.call(predict, behaviour)


def _at(found: dict[Key, np.ndarray], key: Key, table: ErrorTable) -> np.ndarray:
    return found.setdefault(key, np.full((table.steps, table.layers), np.nan))


def _between(gains: np.ndarray) -> np.ndarray:
    """(steps, L) with the rows that are NaN filled in: in between along the logarithm, level at the ends."""
    rows = np.arange(len(gains))
    filled = np.full_like(gains, np.nan)
    for layer, column in enumerate(gains.T):
        known = np.isfinite(column) & (column > 0)
        if known.any():
            filled[:, layer] = np.exp(np.interp(rows, rows[known], np.log(column[known])))
        else:
            filled[:, layer] = 0.0
    return filled
