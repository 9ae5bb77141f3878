"""Plans that compute all parts together at some steps, and at the others reuse or forecast most of them.

A forecast multiplies what is wrong with the outputs that it is made from. Where layers take turns, every output was
computed from inputs that others had made up; where all are computed at the same steps, as in FORA (arXiv 2407.01425)
and TaylorSeer (arXiv 2503.06923), all stand on clean ones, and the errors of one step add up as they were measured,
signs and all. What is chosen here is which steps those are, unevenly spaced, by which order each step in between is
forecast, and which parts are better computed always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.columns import Choice, Schedule, schedules
from calibration.error_table import ErrorTable
from calibration.errors import CalibrationError
from calibration.prices import Macs, Prices, fixed
from plans import Method, Plan, SiteName

SHARES = (1.0, 0.9, 0.8, 0.65, 0.5)  # of the cost, that is left to the steps in which all is computed


@dataclass(frozen=True)
class Rhythm:
    """When all parts are computed, what the others are at the steps between, and which are computed always."""

    schedule: Schedule  # of the parts that are reused; its cost is the whole plan's
    always: frozenset[int]  # parts


class Rhythms:
    """All that are worth considering, for plans of any budget.

    Args:
        plan: all FULL, with the sites that are to be chosen for.
        table: errors of the parts of those sites.
        weights: every step's sensitivity.
        orders: the reusing methods that may stand between.
        longest: steps over which anything is reused at most.
        prices: what cells cost; None counts MACs.
    """

    def __init__(
        self,
        plan: Plan,
        table: ErrorTable,
        weights: Sequence[float],
        orders: Sequence[Method],
        longest: int,
        prices: Prices | None = None,
    ) -> None:
        self._plan, self._table, self._longest = plan, table, longest
        prices = prices or Macs()
        self._squares = np.square(np.asarray(weights, dtype=np.float64))
        self._orders = [method for method in orders if method.reuses_output]
        sites = list(dict.fromkeys(part.site for part in table.parts))
        choices = {site: prices.choices(plan, site, self._orders) for site in sites}
        self._costs = {  # of every part
            method: np.array([choices[part.site][Choice(method)] for part in table.parts])
            for method in (Method.FULL, *self._orders)
        }
        self._fixed = fixed(prices, plan, sites)
        self.rhythms = [rhythm for always in self._subsets() for rhythm in self._of(always)] if self._orders else []

    def costing(self, cost: float) -> Plan:
        """The plan of the least predicted drift among those that cost no more in all.

        Raises:
            CalibrationError: the cheapest plan costs more.
        """
        if not self.rhythms:
            raise CalibrationError("no method that reuses an output may be chosen")
        left = cost - self._fixed
        allowed = [rhythm for rhythm in self.rhythms if rhythm.schedule.cost <= left * (1 + 1e-9)]
        if not allowed:
            least = min(rhythm.schedule.cost for rhythm in self.rhythms) + self._fixed
            raise CalibrationError(f"a plan may cost {cost:.4g}, and the cheapest costs {least:.4g}")
        best = min(allowed, key=lambda rhythm: rhythm.schedule.error)
        return self._filled_in(best)

    def _subsets(self) -> list[frozenset[int]]:
        """Parts to compute always: those whose reuse goes most wrong for what it saves."""
        harm = np.zeros(len(self._table.parts))
        for step in range(1, self._plan.steps):
            errors = self._table.at(step, self._orders[0], 1, 0)
            harm += np.where(np.isfinite(errors), self._squares[step] * errors, 0)
        full = self._costs[Method.FULL]
        order = np.argsort(-np.sqrt(harm) / full)
        found = []
        for share in SHARES:
            kept, begin = full.sum() * share, 0
            while full[order[begin:]].sum() > kept * (1 + 1e-9):
                begin += 1
            found.append(frozenset(int(part) for part in order[:begin]))
        return list(dict.fromkeys(found))

    def _of(self, always: frozenset[int]) -> list[Rhythm]:
        """The front of one choice of parts."""
        reused = [part for part in range(len(self._table.parts)) if part not in always]
        base = float(self._costs[Method.FULL][list(always)].sum())
        costs = {Choice(method): base + float(self._costs[method][reused].sum()) for method in self._costs}

        def errors(step: int, method: Method, age: int, gap: int) -> np.ndarray:
            if step == self._plan.steps - 1 and method.reuses_output:
                return np.array([np.inf])  # all is computed at the last step, which adds detail
            return np.array([self._squares[step] * self._table.together(step, method, age, gap, reused)])

        return [Rhythm(schedule, always) for schedule in schedules(self._plan.steps, costs, errors, self._longest)[0]]

    def _filled_in(self, rhythm: Rhythm) -> Plan:
        plan = self._plan
        sites: dict[SiteName, list[int]] = {}
        for index, part in enumerate(self._table.parts):
            sites.setdefault(part.site, []).append(index)
        for site, parts in sites.items():
            grid = [
                [Method.FULL if part in rhythm.always else method for part in parts]
                for method in rhythm.schedule.methods
            ]
            plan = plan.with_methods(grid, site=site)
        return plan
