"""Which steps of an uncompressed run call the model, and what becomes of the others, by dynamic programming.

The sum of the squared errors of all gaps (``calibration.gaps``) is made least, for every number of calls and every
number of forecasts at once, so that one table serves every budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from calibration.gaps import BEGIN, Gap, Gaps, State
from plans import Method
from plans.make import ORDERS


@dataclass(frozen=True)
class Schedule:
    """The steps of the uncompressed run that are kept, what the model does there, and the squared error expected, which
    tells no two apart."""

    kept: tuple[int, ...]
    column: tuple[Method, ...]
    error: float = field(compare=False)

    @property
    def calls(self) -> int:
        return self.column.count(Method.FULL)


@dataclass(frozen=True)
class _Table:
    """``gaps`` with the states that they follow; at [calls, forecasts] the ``least`` error of a whole run, and of the
    best way to every state (None is the run's end) the number of the ``last`` gap."""

    gaps: list[tuple[State, Gap]]
    least: np.ndarray
    last: dict[State | None, np.ndarray]


class Calls:
    """Chooses from the gaps of a run."""

    def __init__(self, gaps: Gaps) -> None:
        self._gaps, self._steps = gaps, gaps.run.steps

    def best(self, calls: int, forecasts: int) -> Schedule | None:
        """The schedule of least error with so many calls and at most so many forecasts; None if there is none."""
        errors = self._table.least[calls, : forecasts + 1]
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
        table, found = self._table, list[Gap]()
        state: State | None = None
        while state != BEGIN:
            state, gap = table.gaps[table.last[state][calls, forecasts]]
            calls, forecasts = calls - 1, forecasts - len(gap.forecast)
            found.append(gap)
        return found[::-1]

    @cached_property
    def _table(self) -> _Table:
        levels = self._levels()
        gaps = [(state, gap) for level in levels for state, after in level.items() for gap in after]
        errors = iter(self._gaps.errors([gap for _, gap in gaps]))
        shape = (self._steps + 1, self._steps + 1)
        begin = np.full(shape, np.inf)
        begin[0, 0] = 0
        least: dict[State | None, np.ndarray] = {BEGIN: begin}
        last: dict[State | None, np.ndarray] = {}
        number = 0
        for level in levels:
            for state, after in level.items():
                so_far = least.pop(state)
                for gap in after:
                    reached, count = self._gaps.reached(gap), len(gap.forecast)
                    if reached not in least:
                        least[reached], last[reached] = np.full(shape, np.inf), np.full(shape, -1, dtype=np.int32)
                    found = so_far[:-1, : shape[1] - count] + next(errors)
                    into = least[reached][1:, count:]
                    better = found < into
                    into[better] = found[better]
                    last[reached][1:, count:][better] = number
                    number += 1
        return _Table(gaps, least[None], last)

    def _levels(self) -> list[dict[State, list[Gap]]]:
        """The states of every step, with the gaps that follow them."""
        levels: list[dict[State, list[Gap]]] = [{} for _ in range(self._steps)]
        levels[0][BEGIN] = []
        for level in levels:
            for state in level:
                level[state] = list(self._gaps.after(state))
                for gap in level[state]:
                    if (reached := self._gaps.reached(gap)) is not None:
                        levels[gap.to].setdefault(reached, [])
        return levels
