"""Plans from the errors of single cells: no candidate is tried, all are priced at once.

The drift of the final latents is taken as the root of the sum of squares over cells, each cell's being its step's
sensitivity times its error of the guided prediction (``calibration.error_table``). Cells of one part depend on each
other by what is reused, and so are chosen as schedules (``calibration.columns``); parts meet only in the sum, and so
are chosen by an integer program (``calibration.choose``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from calibration.algorithm import Decision
from calibration.choose import least_cost, least_error
from calibration.columns import Schedule, cell_errors, schedules
from calibration.error_table import ErrorTable
from calibration.parts import Part
from calibration.prices import Macs, Prices, fixed
from plans import Method, Plan, SiteName

LONGEST = 4  # steps over which anything is reused at most


class Menu:
    """The schedules of all parts of a model, for plans of any budget.

    Args:
        plan: all FULL, with the sites that are to be chosen for.
        table: errors of the parts of those sites.
        weights: every step's sensitivity.
        candidates: methods besides FULL.
        prices: what cells cost; None counts MACs.
    """

    def __init__(
        self,
        plan: Plan,
        table: ErrorTable,
        weights: Sequence[float],
        candidates: Sequence[Method],
        longest: int = LONGEST,
        prices: Prices | None = None,
    ) -> None:
        self._plan, self._table, self._longest = plan, table, longest
        self._prices = prices or Macs()
        self._squares = np.square(np.asarray(weights, dtype=np.float64))
        self._candidates = candidates
        self._sites: list[SiteName] = [site for site in plan.sites if site != "model"]

    @property
    def parts(self) -> Sequence[Part]:
        """Those that are chosen for, in the order in which the model runs them."""
        return [part for part in self._table.parts if part.site in self._sites]

    def within(self, drift: float) -> Plan:
        """The cheapest of the plans that are predicted to drift by no more."""
        return self._filled_in(least_cost(self._menus, drift**2))

    def costing(self, cost: float) -> Plan:
        """The least predicted drift among plans that cost no more in all, storing residuals included.

        Raises:
            CalibrationError: the cheapest plan costs more.
        """
        return self._filled_in(least_error(self._menus, cost - fixed(self._prices, self._plan, self._sites)))

    def errors_of(self, plan: Plan) -> np.ndarray:
        """Of every cell of a plan, (steps, parts): its predicted drift, squared."""
        columns = [
            cell_errors(
                plan.column(part.layer, part.site),
                part.layer,
                lambda *cell, site=part.site: self._errors(site, *cell),
            )
            for part in self.parts
        ]
        return np.array(columns).T

    @cached_property
    def _menus(self) -> list[list[Schedule]]:
        """Of every layer, site after site."""
        found = []
        for site in self._sites:
            costs = self._prices.choices(self._plan, site, self._candidates)
            found += schedules(
                self._plan.steps, costs, lambda *cell, site=site: self._allowed(site, *cell), self._longest
            )
        return found

    def _allowed(self, site: SiteName, step: int, method: Method, age: int, gap: int) -> np.ndarray:
        """The errors that are chosen by. Where MLPs are chosen for too, nothing is reused at the last step, which adds
        detail."""
        found = self._errors(site, step, method, age, gap)
        last = step == self._plan.steps - 1 and "mlp" in self._sites
        return np.full_like(found, np.inf) if last and method.reuses_output else found

    def _errors(self, site: SiteName, step: int, method: Method, age: int, gap: int) -> np.ndarray:
        mine = [index for index, part in enumerate(self._table.parts) if part.site == site]
        return self._squares[step] * self._table.at(step, method, age, gap)[mine]

    def _filled_in(self, chosen: Sequence[Schedule]) -> Plan:
        plan, begin = self._plan, 0
        for site in self._sites:
            columns = [schedule.methods for schedule in chosen[begin : begin + plan.model.shape(site).layers]]
            begin += len(columns)
            plan = plan.with_methods(list(zip(*columns, strict=True)), site=site)
        return plan


def decisions_of(menu: Menu, plan: Plan) -> list[Decision]:
    """A plan as a search decides: the losses of a step add up over its layers, as the root of the sum of squares."""
    errors = np.sqrt(np.cumsum(menu.errors_of(plan), axis=1))
    rows = []
    for step, losses in enumerate(errors):
        methods = tuple(plan.column(part.layer, part.site)[step] for part in menu.parts)
        kept = (None if method is Method.FULL else float(loss) for method, loss in zip(methods, losses, strict=True))
        rows.append(Decision(methods, tuple(kept), ()))
    return rows
