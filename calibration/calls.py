"""Which steps of an uncompressed run call the model, and what becomes of the others, by dynamic programming.

The sum of the squared errors of all gaps (``calibration.gaps``) is made least, for every number of calls and every
number of forecasts at once, so that one table serves every budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calibration.gaps import BEGIN, Gap, Gaps, State
from plans import Method
from plans.make import ORDERS


@dataclass(frozen=True)
class Schedule:
    """The steps of the uncompressed run that are kept, what the model does there, and the squared error expected."""

    kept: tuple[int, ...]
    column: tuple[Method, ...]
    error: float


class Calls:
    def __init__(self, gaps: Gaps) -> None:
        self._gaps, self._steps = gaps, gaps.run.steps

    def best(self, calls: int, forecasts: int) -> Schedule | None:
        """Of the schedules of so many calls, and no more than so many forecasts, that of the least error."""
        errors = self._least[calls, : forecasts + 1]
        count = int(np.argmin(errors))
        if not np.isfinite(errors[count]):
            return None
        kept: list[int] = []
        column: list[Method] = []
        for gap in self._path(calls, count):
            kept += [gap.computed[-1], *gap.forecast]
            column += [Method.FULL, *[ORDERS[gap.order]] * len(gap.forecast)]
        return Schedule(tuple(kept), tuple(column), float(errors[count]))

    def _path(self, calls: int, forecasts: int) -> list[Gap]:
        """The gaps of the best schedule, from its end."""
        found: list[Gap] = []
        state: State | None = None
        while state != BEGIN:
            state, gap = self._edges[self._last[state][calls, forecasts]]
            calls, forecasts = calls - 1, forecasts - len(gap.forecast)
            found.append(gap)
        return found[::-1]

    @property
    def _least(self) -> np.ndarray:
        """(calls, forecasts): the least error."""
        return self._table[0]

    @property
    def _last(self) -> dict[State | None, np.ndarray]:
        """The last gap to every state, by calls before it and forecasts."""
        return self._table[1]

    @property
    def _edges(self):
        return self._table[2]

    @cached_property
    def _table(self):
        steps = self._steps
        levels: list[dict[State, None]] = [{} for _ in range(steps)]
        levels[0][BEGIN] = None
        edges = []
        for level in levels:
            for state in level:
                for gap in self._gaps.after(state):
                    edges.append((state, gap))
                    reached = self._gaps.reached(gap)
                    if reached is not None:
                        levels[gap.to].setdefault(reached)
        errors = self._gaps.errors([gap for _, gap in edges])
        shape = (steps + 1, steps + 1)
        least = {BEGIN: np.full(shape, np.inf)}
        least[BEGIN][0, 0] = 0
        last = {}
        for number, (state, gap) in enumerate(edges):
            reached = self._gaps.reached(gap)
            if reached not in least:
                least[reached], last[reached] = np.full(shape, np.inf), np.full(shape, -1, dtype=np.int32)
            k = len(gap.forecast)
            found = least[state][:-1, : steps + 1 - k] + errors[number]
            into, by = least[reached][1:, k:], last[reached][1:, k:]
            better = found < into
            into[better] = found[better]
            by[better] = number
        return least[None], last, edges
