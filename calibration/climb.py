"""Schedules searched on from those of the dynamic program, by errors that add up as vectors do.

To the dynamic program the errors of gaps are unrelated, and their squares add up. Those of neighbours are alike,
though, and what one adds another may take away again. If all kept their direction on the way to the end, the square
of their sum would be the error; but the model turns them. A part of one and a part of the other is near to what runs
end at, and is made less by one change of a schedule after another, without the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np

from calibration.calls import Schedule
from calibration.gaps import BEGIN, Gap, Gaps, State
from plans import Method
from plans.make import ORDERS

REACH = 3  # steps between two that are exchanged, at most
GAIN = 1e-4  # of the squared error, below which a change is none

Steps = tuple[Method | None, ...]  # what the run's steps do; None: left out


class Climb:
    """Searches on from schedules.

    Args:
        gaps: of the run, and what they may be.
    """

    def __init__(self, gaps: Gaps) -> None:
        self._gaps = gaps
        self._at_the_end = cache(gaps.at_the_end)

    def top(self, schedule: Schedule, forecasts: int, together: float) -> Schedule:
        """The schedule of least error that changes for the better lead to, each the best there is.

        Args:
            forecasts: at most so many steps are forecast. The number of calls stays.
            together: as in `error`.
        """
        best = self.steps_of(schedule)
        error = self.error(best, together)
        while True:
            tried = [(self.error(steps, together), steps) for steps in self._changed(best, forecasts)]
            found, steps = min(tried, key=lambda one: one[0], default=(np.inf, best))
            if not found < error * (1 - GAIN):
                break
            error, best = found, steps
        kept = tuple(step for step, method in enumerate(best) if method is not None)
        return Schedule(kept, tuple(method for method in best if method is not None), error)

    def steps_of(self, schedule: Schedule) -> Steps:
        """A schedule, step by step of the run."""
        does = dict(zip(schedule.kept, schedule.column, strict=True))
        return tuple(does.get(step) for step in range(self._gaps.run.steps))

    def error(self, steps: Steps, together: float) -> float:
        """The squared error expected at the end of the run, as a share of the final latents; infinite for steps that no
        schedule may have.

        Args:
            together: the share of the square of the sum in it; the sum of squares has the rest.
        """
        gaps = list(self._between(steps))
        if not all(map(self._gaps.allows, gaps)):
            return np.inf
        each = np.stack([self._at_the_end(gap) for gap in gaps])
        apart, summed = self._gaps.squares(each).sum(), self._gaps.squares(each.sum(0, keepdims=True)).sum()
        return float((1 - together) * apart + together * summed)

    def _between(self, steps: Steps) -> Iterator[Gap]:
        """What lies between the calls."""
        calls = [step for step, method in enumerate(steps) if method is Method.FULL]
        state: State | None = BEGIN
        for now, to in pairwise([*calls, len(steps)]):
            forecasts = {step: method for step in range(now + 1, to) if (method := steps[step]) is not None}
            order = next((ORDERS.index(method) for method in forecasts.values()), 0)
            assert state is not None  # the run's end, which no call follows
            gap = Gap(*state, tuple(forecasts), order, to)
            yield gap
            state = self._gaps.reached(gap)

    def _changed(self, steps: Steps, forecasts: int) -> Iterator[Steps]:
        """All that are one change away: near steps exchange what they do, or one that does not call the model is
        forecast by another order, or left out."""
        fillings = [ORDERS[order] for order in self._gaps.orders] + [None] * self._gaps.leaps
        for one, method in enumerate(steps[1:], start=1):
            for other in range(one + 1, min(one + REACH, len(steps) - 1) + 1):
                if steps[other] is not method:
                    yield _alike(_with(_with(steps, one, steps[other]), other, method))
            if method is not Method.FULL:
                for filling in fillings:
                    changed = _alike(_with(steps, one, filling))
                    if changed != steps and _forecasts(changed) <= forecasts:
                        yield changed


def _with(steps: Steps, step: int, method: Method | None) -> Steps:
    return (*steps[:step], method, *steps[step + 1 :])


def _forecasts(steps: Steps) -> int:
    return sum(method is not None and method is not Method.FULL for method in steps)


def _alike(steps: Steps) -> Steps:
    """All forecasts of a gap are by the order of its first."""
    found: list[Method | None] = []
    order: Method | None = None
    for method in steps:
        if method is Method.FULL:
            order = None
        elif method is not None:
            method = order = order or method
        found.append(method)
    return tuple(found)
