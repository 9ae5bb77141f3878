"""What steps of a run that do not call the model do: the errors of gaps between model calls.

Between two calls a step of the uncompressed run can be left out of the timesteps, or kept with the model's output
forecast from its last ones, which costs little and leaves the sampler its short steps. The sampler's formula is linear
in latents and outputs, so what it makes of either is a combination of those that one uncompressed run has recorded, and
its error is that combination's norm: no model, and hardly any arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from calibration.recorded import Recording
from plans.forecast import forecast_weights


class Gap(NamedTuple):
    """From one model call, ``computed[-1]``, to the next, or to the end of the run.

    Attributes:
        before: the step before the call, which the sampler remembers; None if there is none.
        computed: the last calls, as many as forecasts may go by.
        forecast: the steps between that are kept; the others are left out.
        order: of the forecasts; 0 if there are none.
        to: the next call, or the number of steps.
    """

    before: int | None
    computed: tuple[int, ...]
    forecast: tuple[int, ...]
    order: int
    to: int


class State(NamedTuple):
    """A model call, and all that the errors after it depend on: ``before`` and ``computed`` of the gaps after it."""

    before: int | None
    computed: tuple[int, ...]


BEGIN = State(None, (0,))


class Gaps:
    """All gaps that a run may have.

    Args:
        orders: of forecasts that may be used, above 0.
        longest: steps from one call to the next, at most.
        leaps: steps may be left out; else all that are not computed are forecast.
    """

    def __init__(self, run: Recording, orders: Sequence[int], longest: int, leaps: bool) -> None:
        self.run, self.orders, self.longest, self.leaps = run, tuple(orders), longest, leaps
        self._read = max([1, *orders]) + 1  # two calls tell whether the step before one was a call
        self._times = run.run.timesteps

    def after(self, state: State) -> Iterator[Gap]:
        """The gaps that may follow a call, their forecasts at even distances."""
        before, computed = state
        now = computed[-1]
        for to in range(now + 1, min(now + self.longest, self.run.steps) + 1):
            for forecast, order in self._fillings(computed, to):
                gap = Gap(before, computed, forecast, order, to)
                if self.allows(gap):
                    yield gap

    def allows(self, gap: Gap) -> bool:
        """Whether a gap may be in a run.

        After a forecast, by which the sampler extrapolates, comes no leap. The last step that is kept calls the model
        (``calibration.pool.computes_nothing_last`` says why).
        """
        now = gap.computed[-1]
        if gap.to - now > self.longest or (gap.forecast and gap.order >= len(gap.computed)):
            return False
        if gap.forecast and gap.to == self.run.steps:
            return False
        forecast_before = gap.before not in (None, *gap.computed)
        return not forecast_before or (*gap.forecast, gap.to)[0] == now + 1

    def reached(self, gap: Gap) -> State | None:
        """Where a gap leads; None is the end of the run."""
        if gap.to == self.run.steps:
            return None
        return State((gap.forecast or gap.computed)[-1], (*gap.computed, gap.to)[-self._read :])

    def _fillings(self, computed: tuple[int, ...], to: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """Which steps before ``to`` are forecast, none or at even distances, and by which order."""
        now = computed[-1]
        if self.leaps or to == now + 1:
            yield (), 0
        strides = range(1, to - now) if self.leaps else range(1, min(2, to - now))
        for forecast in dict.fromkeys(tuple(range(now + stride, to, stride)) for stride in strides):
            for order in self.orders:
                yield forecast, order

    def errors(self, gaps: Sequence[Gap]) -> np.ndarray:
        """The squared error of each gap at the end of the run, as a share of the final latents; the images' mean."""
        return self.squares(np.stack([self.at_the_end(gap) for gap in gaps]))

    def squares(self, errors: np.ndarray) -> np.ndarray:
        """The squared norms of errors (n, 2 steps + 1), counted as in `at_the_end`."""
        found: np.ndarray = ((errors @ self._products) * errors).sum(1)
        return found

    def at_the_end(self, gap: Gap) -> np.ndarray:
        """The error of a gap as it will be at the end: what each latent and each output of the run counts in it.

        The latents that the gap ends at are off, and where it ends in a forecast also what the sampler remembers in its
        next step. (2 steps + 1,): latents, then outputs.
        """
        times, growth = self._times, self.run.growth
        before, now, read = gap.before, gap.computed[-1], gap.computed[-1 - gap.order :]
        at = self._latents(now), self._output(now)
        old = at if before is None else (self._latents(before), self._output(before))
        for to in (*gap.forecast, gap.to):
            reached = _sum(self.run.weights(before, now, to), (*at, *old))
            before, now, old = now, to, at
            if to != gap.to:
                weights = forecast_weights(times[to], [times[step] for step in read])
                at = reached, _sum(weights, [self._output(step) for step in read])
        off: np.ndarray = growth[gap.to] * (reached - self._latents(gap.to))
        if gap.forecast and gap.to < self.run.steps:
            last = gap.forecast[-1]
            weights = self.run.weights(last, gap.to, gap.to + 1)[2:]
            wrong = old[0] - self._latents(last), old[1] - self._output(last)
            off = off + growth[gap.to + 1] * _sum(weights, wrong)
        return off

    def _latents(self, step: int) -> np.ndarray:
        found = np.zeros(2 * self.run.steps + 1)
        found[step] = 1
        return found

    def _output(self, step: int) -> np.ndarray:
        return self._latents(self.run.steps + 1 + step)

    @cached_property
    def _products(self) -> np.ndarray:
        """Scalar products of all latents and outputs, as shares of the final latents', the images' mean."""
        kept, images = (*self.run.latents, *self.run.outputs), len(self.run.latents[0])
        found = np.zeros((len(kept), len(kept)))
        for image in range(images):  # one at a time: in float64 all would take more than the run itself
            parts = torch.stack([part[image].double().flatten() for part in kept])  # (2 steps + 1, C h w)
            parts /= parts[self.run.steps].norm()
            found += (parts @ parts.T).cpu().numpy() / images
        return found


def _sum(weights: Sequence[float], parts: Sequence[np.ndarray]) -> np.ndarray:
    found: np.ndarray = sum(weight * part for weight, part in zip(weights, parts, strict=True))  # type: ignore[assignment]
    return found
