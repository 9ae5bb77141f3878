"""Candidates that skip steps: the model is not called, its output is forecast, and the sampler goes on in short steps.

A skipped step is nearly free, and forecasts of the model's output end nearer than those of every layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from calibration.calls import Calls, Schedule
from calibration.climb import Climb
from calibration.gaps import Gaps
from calibration.prices import Prices
from calibration.recorded import Recording
from plans import Plan
from plans.make import skip

LONGEST = 5  # steps from one call to the next, at most
WIDER = 2  # steps by which a gap may be longer than all would be if even
MOST = 100  # steps of a run; the tables of longer ones would be too large
TRIED = 2  # schedules of each kind, by each measure of their error
CLIMBED = 4  # schedules of the dynamic program that are searched on from
TOGETHER = (0.5, 0.8)  # shares of errors that add up as vectors; which foretells runs best differs between models


@dataclass(frozen=True)
class StepPrices:
    """What plans cost that skip steps: ``begin``, and ``call`` and ``skip`` for each step."""

    begin: float
    call: float
    skip: float

    @classmethod
    def of(cls, full: Callable[[int], Plan], base: int, order: int, prices: Prices) -> StepPrices:
        """From three plans that skip steps. ``base``: at least 6."""
        # a steps, half computed; as many, a third; half as many, half computed: three equations
        plans = [skip(full(base), 2, order), skip(full(base), 3, order), skip(full(base // 2), 2, order)]
        costs = [prices.of(plan) for plan in plans]
        calls = [plan.calls for plan in plans]
        more = (costs[0] - costs[1]) / (calls[0] - calls[1])  # a call than a skipped step
        each = (costs[0] - costs[2] - more * (calls[0] - calls[2])) / (plans[0].steps - plans[2].steps)
        return cls(costs[0] - more * calls[0] - each * plans[0].steps, more + each, each)

    def calls(self, budget: float) -> int:
        """How many fit into a budget."""
        return math.floor((budget - self.begin) / self.call + 1e-9)

    def skips(self, budget: float, calls: int, most: int) -> int:
        """How many skipped steps fit beside so many calls, but no more than ``most``."""
        left = budget - self.begin - calls * self.call
        free = self.skip <= 1e-9 * self.call  # but for rounding
        return most if free else max(0, min(most, math.floor(left / self.skip + 1e-9)))


class Skips:
    """Plans that skip steps, by the errors of an uncompressed run's gaps."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._tables = lru_cache(maxsize=2)(self._tables_of)  # large ones

    def chosen(
        self,
        full: Callable[[int], Plan],
        orders: Sequence[int],
        budget: float,
        prices: Prices,
        leaps: bool,
    ) -> list[Plan]:
        """Plans within a budget: those of the dynamic program, and what is found by climbing on from them, of each the
        one of least expected error first.

        Args:
            full: the all-FULL plan of so many steps.
            orders: of forecasts.
            leaps: steps are left out too, or instead; the timesteps are then the plans' own.
        """
        base = self._recording.steps
        if not orders or not 6 <= base <= MOST:
            return []
        price = StepPrices.of(full, base, max(orders), prices)
        most = min(price.calls(budget), base - 1)
        if most < 2 or most * LONGEST < base:
            return []
        if not self._recording.replays or (leaps and not self._recording.leaps):
            return []
        longest = min(LONGEST, math.ceil(base / most) + WIDER)
        calls, climb = self._tables(tuple(orders), longest, leaps)
        forecasts = {count: price.skips(budget, count, base - count) for count in range(2, most + 1)}
        found = _nearest(filter(None, (calls.best(*one) for one in forecasts.items())))
        ranked = [found]
        for together in TOGETHER:
            ranked.append(_nearest(climb.top(one, forecasts[one.calls], together) for one in found[:CLIMBED]))

        def fits(plan: Plan) -> bool:
            return plan.sampler.own_timesteps == leaps and prices.of(plan) <= budget * (1 + 1e-9)

        chosen: dict[Schedule, Plan] = {}  # the same may come by several measures
        for schedules in ranked:
            made = ((one, self._plan(full, one)) for one in schedules if one not in chosen)
            chosen.update(islice(((one, plan) for one, plan in made if fits(plan)), TRIED))
        return list(chosen.values())

    def _tables_of(self, orders: tuple[int, ...], longest: int, leaps: bool) -> tuple[Calls, Climb]:
        gaps = Gaps(self._recording, orders, longest, leaps)
        return Calls(gaps), Climb(gaps)

    def _plan(self, full: Callable[[int], Plan], schedule: Schedule) -> Plan:
        plan, times = full(len(schedule.kept)), self._recording.run.timesteps
        if len(schedule.kept) < len(times):
            plan = plan.with_timesteps([times[step] for step in schedule.kept])
        return plan.skipping(schedule.column) if schedule.calls < len(schedule.kept) else plan


def _nearest(schedules: Iterable[Schedule]) -> list[Schedule]:
    return sorted(schedules, key=lambda one: one.error)
