"""What a plan says of the runs that begin at one of its steps; the same for every such run, so it is kept."""

from collections import Counter
from functools import cache

from ditfastattn.cache import Cell, entering_at, liveness
from plans import Method, Plan, SiteName


class Planned:
    """Of one plan, ``entered_at``: the step at which a run begins."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.cells = cache(self._cells)
        self.counts = cache(self._counts)

    def _cells(self, entered_at: int) -> dict[SiteName, list[tuple[Cell, ...]]]:
        """[layer of the site][step - entered_at]."""
        return {site: self._columns(site, entered_at) for site in self._plan.sites}

    def _counts(self, entered_at: int) -> list[Counter[tuple[SiteName, Method]]]:
        """Layers that use each method, of every step from there on."""
        cells = self.cells(entered_at)
        return [
            Counter((site, column[index].method) for site, columns in cells.items() for column in columns)
            for index in range(self._plan.steps - entered_at)
        ]

    def _columns(self, site: SiteName, entered_at: int) -> list[tuple[Cell, ...]]:
        plan, timesteps = self._plan, self._plan.sampler.timesteps
        skipped = {step - entered_at for step in plan.skipped if step > entered_at} if site != "model" else ()
        columns = [plan.column(layer, site) for layer in range(plan.model.shape(site).layers)]
        found = {
            column: liveness(entering_at(column, entered_at, timesteps), timesteps[entered_at:], skipped)
            for column in set(columns)
        }
        return [found[column] for column in columns]
