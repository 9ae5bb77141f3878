"""The error of every cell a plan could have, from one uncompressed sampling run.

At each step what a method would put in the place of a layer's output is compared with that output: older outputs (AST),
their extrapolation (forecasts), the other branch's (ASC), a window with an older residual (WA_RS). How far the guided
prediction moves by the difference is told by gradients of random projections of it (``calibration.response``), which
are taken anew every few steps.

An error is a vector of such projections, in units of the prediction's own norm: the squared length of one is the
squared relative L2 of the guided prediction with one cell in its place and all others full. Those of several cells of a
step add up, so that what they have in common is seen. What their errors do to each other's inputs is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from calibration.parts import Part, Parts
from calibration.probe import Probe
from calibration.response import Response, respond
from calibration.sensitivity import Run
from ditfastattn.layout import both_halves
from plans import Method
from plans.forecast import forecast_weights

STRIDE = 4  # steps for which one response serves
PROJECTIONS = 4  # random ones for each
Key = tuple[Method, int, int]  # method, age, gap


@dataclass
class ErrorTable:
    """``along[method, age, gap]``: (steps, parts, projections) float64; NaN where a method has nothing to reuse.

    Attributes:
        parts: attention and MLPs, in the order in which the model runs them.
    """

    steps: int
    parts: Sequence[Part]
    along: dict[Key, np.ndarray] = field(default_factory=dict)
    block_runs: int = 0

    def vectors(self, step: int, method: Method, age: int, gap: int) -> np.ndarray:
        """Of every part, (parts, projections); infinite where a method has nothing to reuse, or was not measured."""
        key = (method, age, gap if method.forecasts else 0)
        if method is Method.FULL:
            return np.zeros((len(self.parts), 1))
        if key not in self.along:
            return np.full((len(self.parts), 1), np.inf)
        return np.nan_to_num(self.along[key][step], nan=np.inf)

    def at(self, step: int, method: Method, age: int, gap: int) -> np.ndarray:
        """Squared error of every part alone, (parts,)."""
        return np.square(self.vectors(step, method, age, gap)).sum(1)

    def together(self, step: int, method: Method, age: int, gap: int, parts: Sequence[int]) -> float:
        """Squared error of these parts at once."""
        return float(np.square(self.vectors(step, method, age, gap)[list(parts)].sum(0)).sum())


def measure(
    probe: Probe,
    run: Run,
    timesteps: Sequence[float],
    methods: Sequence[Method],
    *,
    longest: int,
    stride: int,
    mlps: bool = False,
    projections: int = 1,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> ErrorTable:
    """Samples once, uncompressed, from where ``run`` stands to its end.

    Args:
        methods: the candidates, FULL not among them.
        longest: steps over which anything is reused at most.
        stride: steps for which one response serves.
        mlps: measure those too.
        projections: random ones for each response.
        on_step: called after every step with the number of all.
    """
    steps, parts = len(timesteps), Parts(probe, ("mlp",) if mlps else ())
    table = ErrorTable(steps, parts.parts)
    generator = torch.Generator().manual_seed(seed)
    begun = probe.block_runs
    past = _Past(parts, longest, any(method.windowed for method in methods))
    response: Response | None = None
    for step, timestep in enumerate(timesteps):

        def predict(step: int = step) -> Tensor:
            return run.predict(step)

        past.begin(timestep)
        if step % stride == 1 % stride:
            output, response = respond(parts, predict, run.guided, past, projections, generator)
        else:
            output = parts.call(predict, past)
        if step:
            assert response is not None
            unit = float(run.guided(output).double().norm()) * math.sqrt(projections)
            for part in range(len(parts)):
                for key, off in past.candidates(part, methods):
                    along = response.along(part, off).double().cpu().numpy() / unit
                    shape = (steps, len(parts), len(along))
                    table.along.setdefault(key, np.full(shape, np.nan))[step, part] = along
        past.end()
        run.advance(step, output)
        if on_step:
            on_step(steps)
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

    def follower(self, part: int, output: Tensor) -> Tensor:
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
                times = [self._times[steps] for steps in back] if back[0] <= len(past) else []
                if len(set(times)) < method.outputs_read:  # too few, or two at one timestep, as Heun's
                    continue
                weights = forecast_weights(self._times[0], times)
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
