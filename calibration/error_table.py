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

import numpy as np
import torch
from torch import Tensor

from calibration.parts import Part, Parts
from calibration.probe import Probe
from calibration.response import respond
from calibration.sensitivity import Run
from ditfastattn.layout import both_halves
from plans import Method
from plans.forecast import forecast_weights

Key = tuple[Method, int, int]  # method, age, gap


@dataclass
class ErrorTable:
    """``squared[method, age, gap]``: (steps, parts) float64; NaN where a method has nothing to reuse.

    Attributes:
        parts: attention and MLPs, in the order in which the model runs them.
    """

    steps: int
    parts: Sequence[Part]
    squared: dict[Key, np.ndarray] = field(default_factory=dict)
    block_runs: int = 0

    def at(self, step: int, method: Method, age: int, gap: int) -> np.ndarray:
        """Of every part, (parts,); infinite where a method has nothing to reuse, or was not measured."""
        if method is Method.FULL:
            return np.zeros(len(self.parts))
        key = (method, age, gap if method.forecasts else 0)
        if key not in self.squared:
            return np.full(len(self.parts), np.inf)
        return np.nan_to_num(self.squared[key][step], nan=np.inf, posinf=np.inf)


def measure(
    probe: Probe,
    run: Run,
    timesteps: Sequence[float],
    methods: Sequence[Method],
    *,
    longest: int,
    measured: int,
    mlps: bool = False,
    projections: int = 1,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> ErrorTable:
    """Samples once, uncompressed, from where ``run`` stands to its end.

    Args:
        methods: the candidates, FULL not among them.
        longest: steps over which anything is reused at most.
        measured: steps at which the response is measured, spread evenly; at least 2.
        mlps: measure those too.
        projections: random ones for each of the measured steps.
        on_step: called after every step with the number of all.
    """
    steps, parts = len(timesteps), Parts(probe, mlps)
    table = ErrorTable(steps, parts.parts)
    sizes: dict[Key, np.ndarray] = {}
    at = {round(step) for step in np.linspace(1, steps - 1, min(measured, steps - 1))}
    generator = torch.Generator().manual_seed(seed)
    begun = probe.block_runs
    past = _Past(parts, longest, any(method.windowed for method in methods))
    for step, timestep in enumerate(timesteps):

        def predict(step: int = step) -> Tensor:
            return run.predict(step)

        past.begin(timestep)
        if step in at:
            output, response = respond(parts, predict, run.guided, past, projections, generator)
        else:
            output, response = parts.call(predict, past), None
        for part in range(len(parts)) if step else ():
            for key, off in past.candidates(part, methods):
                size = float(off.double().square().sum())
                _at(sizes, key, table)[step, part] = size
                if response is not None and size:
                    _at(table.squared, key, table)[step, part] = response.error(part, off)
        past.end()
        run.advance(step, output)
        if on_step:
            on_step(steps)
    for kind in dict.fromkeys(map(_kind, sizes)):
        keys = [key for key in sizes if _kind(key) == kind]
        gains = _between(_mean([table.squared[key] / sizes[key] for key in keys if key in table.squared]))
        for key in keys:
            table.squared[key] = sizes[key] * gains
    table.block_runs = probe.block_runs - begun
    return table


class _Past:
    """What the parts gave at the last steps, and what a method would make of it now."""

    def __init__(self, parts: Parts, longest: int, residuals: bool) -> None:
        self._probe, self._parts = parts.probe, parts.parts
        self._longest, self._residuals = longest, residuals
        self._times: list[float] = []  # of the steps so far, the present one first
        self._outputs: list[list[Tensor]] = [[] for _ in parts.parts]  # of the steps before, the last one first
        self._kept: list[list[Tensor]] = [[] for _ in parts.parts]  # residuals, the present one first
        self._now: list[Tensor] = []
        self._cores: dict[int, Tensor] = {}  # full attention before the out-projection

    def begin(self, timestep: float) -> None:
        self._times.insert(0, timestep)
        self._now, self._cores = [], {}

    @torch.no_grad()
    def attention(self, part: int, output: Tensor, q: Tensor, k: Tensor, v: Tensor, core: Tensor) -> Tensor:
        self._now.append(output)
        if self._residuals:
            context = self._probe.contexts[self._parts[part].site]
            self._cores[part] = core
            self._kept[part].insert(0, context.kernel.residual(q, k, v, core, context.window))
        return output

    def mlp(self, part: int, output: Tensor) -> Tensor:
        self._now.append(output)
        return output

    def end(self) -> None:
        for outputs, now in zip(self._outputs, self._now, strict=True):
            outputs.insert(0, now)
            del outputs[3 * self._longest :]
        for kept in self._kept:
            del kept[self._longest :]

    def candidates(self, part: int, methods: Sequence[Method]) -> Iterator[tuple[Key, Tensor]]:
        """How far off the part's output would be by each method, age and gap: (rows, N, C)."""
        now = self._now[part]
        for method in methods:
            if method.reuses_output:
                yield from self._reused(part, method)
            elif method is Method.ASC:
                yield (method, 0, 0), self._shared(part, now) - now
            elif method.windowed and part in self._cores:
                yield from self._windowed(part, method)

    def _reused(self, part: int, method: Method) -> Iterator[tuple[Key, Tensor]]:
        past, now = self._outputs[part], self._now[part]
        for age in range(1, min(self._longest, len(past)) + 1):
            for gap in range(1, self._longest + 1) if method.forecasts else (0,):
                back = [age + gap * i for i in range(method.outputs_read)][::-1]
                if back[0] > len(past):
                    continue
                weights = forecast_weights(self._times[0], [self._times[steps] for steps in back])
                found = torch.stack([weight * past[steps - 1] for weight, steps in zip(weights, back, strict=True)])
                yield (method, age, gap), found.sum(0) - now

    def _windowed(self, part: int, method: Method) -> Iterator[tuple[Key, Tensor]]:
        block, now = self._probe.adapter.blocks[self._parts[part].block], self._now[part]
        residual, *older = self._kept[part]
        for age, stored in enumerate(older, start=1):
            found = block.project(self._cores[part] - residual + stored)
            yield (method, age, 0), (self._shared(part, found) if method.shares_guidance else found) - now

    def _shared(self, part: int, output: Tensor) -> Tensor:
        """The conditional half for both."""
        layout = self._probe.contexts["attn"].layout
        return both_halves(output[layout.conditional_rows(len(output))])


def _at(found: dict[Key, np.ndarray], key: Key, table: ErrorTable) -> np.ndarray:
    return found.setdefault(key, np.full((table.steps, len(table.parts)), np.nan))


def _kind(key: Key) -> Method:
    """What differs from the output in much the same direction, however old: its gains are averaged."""
    return Method.AST if key[0].reuses_output else key[0]


def _mean(gains: Sequence[np.ndarray]) -> np.ndarray:
    """Of those that are known, each (steps, parts); NaN where none is."""
    stacked = np.stack(gains)
    known = np.isfinite(stacked)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, stacked, 0).sum(0) / known.sum(0)


def _between(gains: np.ndarray) -> np.ndarray:
    """(steps, parts) with what was not measured filled in: in between along the logarithm, level at the ends; 0 where
    nothing was."""
    rows = np.arange(len(gains))
    filled = np.zeros_like(gains)
    for part, column in enumerate(gains.T):
        known = np.isfinite(column) & (column > 0)
        if known.any():
            filled[:, part] = np.exp(np.interp(rows, rows[known], np.log(column[known])))
    return filled
