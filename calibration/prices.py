"""What plans cost, cell by cell and as a whole: in MACs here, in measured time where a table of it is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from calibration.columns import Choice, Costs
from ditfastattn.cache import Cell, Rows
from ditfastattn.cost import CostTable, plan_time
from ditfastattn.cost.rows import FULL, STORING, WEIGHTS, cells_of
from ditfastattn.layout import Layout
from plans import Method, Plan, SiteName
from plans.macs import method_macs, total_macs
from plans.site import methods_of


class Prices(Protocol):
    """In one unit. Cells add up: a plan costs what its cells do, and something more that no cell changes."""

    def of(self, plan: Plan) -> float:
        """The whole plan, storing residuals included."""

    def choices(self, plan: Plan, site: SiteName, candidates: Sequence[Method]) -> Costs:
        """Every cell that a layer of the site may have: FULL, and those of the candidates that the site knows."""


class Macs:
    """MACs per item, of attention and MLPs (``plans.macs``)."""

    def of(self, plan: Plan) -> float:
        found = total_macs(plan)
        return float(found.total + found.residual_store)

    def choices(self, plan: Plan, site: SiteName, candidates: Sequence[Method]) -> Costs:
        model, shape = plan.model, plan.model.shape(site)
        usable = [method for method in (*candidates, Method.FULL) if method in methods_of(site)]
        if site == "mlp":
            assert model.mlp is not None
            full = 2 * shape.rows * shape.tokens * model.width * model.mlp.hidden
            return {
                Choice(method): 0.0 if method.reuses_output else full / 2 if method.shares_guidance else float(full)
                for method in usable
            }
        window = plan.window_of(site)
        found = {
            Choice(method): float(
                shape.rows * method_macs(method, tokens=shape.tokens, width=model.width, window=window)
            )
            for method in usable
        }
        whole = float(shape.rows * 2 * window.pairs(shape.tokens) * model.width)  # of a window's core, for a residual
        stores = {Rows.CONDITIONAL_HALF: whole / 2, Rows.WHOLE_BATCH: whole}
        for choice in storing(usable):
            found[choice] = found[Choice(choice.method)] + stores[choice.stores]
        return found


class Times:
    """Milliseconds of a run, from a measured table (``ditfastattn.cost``)."""

    def __init__(self, table: CostTable) -> None:
        self.table = table

    def of(self, plan: Plan) -> float:
        return plan_time(plan, self.table).total

    def choices(self, plan: Plan, site: SiteName, candidates: Sequence[Method]) -> Costs:
        usable = [method for method in (*candidates, Method.FULL) if method in methods_of(site)]
        cells = [Choice(method) for method in usable] + (storing(usable) if site != "mlp" else [])
        kept = len(usable) > 1  # an output that others reuse is kept
        return {choice: self.table.times(site, self._cell(site, choice, kept)) / 1000 for choice in cells}

    def slow(self) -> tuple[Method, ...]:
        """The methods that were measured no faster than FULL: no plan is the better for them."""
        at_full = self.table.times("attn", FULL)
        cells = [
            cell for cell in cells_of("attn", Layout(self.table.key.layout)) if cell.store_residual is Rows.NOTHING
        ]
        return tuple(
            cell.method
            for cell in cells
            if cell.method is not Method.FULL and self.table.times("attn", cell) >= at_full
        )

    @staticmethod
    def _cell(site: SiteName, choice: Choice, kept: bool) -> Cell:
        if site == "mlp" and choice.method is Method.FULL:
            return STORING if kept else FULL
        return Cell(choice.method, store_residual=choice.stores, weights=WEIGHTS.get(choice.method, ()))


def storing(usable: Sequence[Method]) -> list[Choice]:
    """The cells among these methods that store residuals, as far as there are windows to use them."""
    found = []
    for method in (Method.FULL, Method.ASC):
        if method not in usable or not any(other.windowed for other in usable):
            continue
        if Method.WA_RS_ASC in usable or method is Method.ASC:
            found.append(Choice(method, Rows.CONDITIONAL_HALF))
        if Method.WA_RS in usable and method is Method.FULL:
            found.append(Choice(method, Rows.WHOLE_BATCH))
    return found


def fixed(prices: Prices, plan: Plan, sites: Sequence[SiteName]) -> float:
    """What a plan costs beyond the cells of these sites. ``plan``: all FULL."""
    cells = sum(
        plan.steps * plan.model.shape(site).layers * prices.choices(plan, site, ())[Choice(Method.FULL)]
        for site in sites
    )
    return prices.of(plan) - cells
