"""Plans of a given cost for models that could not be calibrated here: synthetic, and called that wherever they show.

A synthetic plan takes its methods from the six plans that were calibrated on the bundled demo, layers resampled to the
model's depth: cell by cell from two neighbouring ones, in such a proportion that the attention MACs come out right. The
sites of a video model are filled alike.
"""

import random
from importlib.resources import files

from ditfastattn.errors import DitFastAttnError
from plans import Method, Plan, SiteName, loads
from plans.macs import method_macs, plan_macs

Cells = dict[SiteName, list[list[Method]]]  # by site: [step][layer]
Costs = dict[SiteName, dict[Method, int]]  # MACs of one layer of a site at one step


def demo_plans() -> list[Plan]:
    """The calibrated plans of the bundled demo, dearest first."""
    folder = files("plans") / "library"
    found = [loads(file.read_text(), source=file.name) for file in folder.iterdir() if file.name.endswith(".json")]
    return sorted(found, key=lambda plan: -plan_macs(plan).percent)


def synthetic_plan(full: Plan, percent: float, seed: int = 0) -> Plan:
    """A plan like ``full`` whose attention MACs, of all sites together, are ``percent`` of all FULL (projections
    counted), to half a percent.

    Raises:
        DitFastAttnError: a plan whose first step is FULL cannot cost so little, or none so much.
    """
    ladder = [
        _uniform(full, Method.FULL),
        *(_resampled(plan, full) for plan in demo_plans()),
        _uniform(full, Method.AST),
    ]
    costs = _costs(full)
    total = _macs(ladder[0], costs)
    shares = [100 * _macs(cells, costs) / total for cells in ladder]
    if not shares[-1] <= percent <= 100:
        raise DitFastAttnError(
            f"a plan of {full.steps} steps costs between {shares[-1]:.1f} and 100 % of full, not {percent:g} %"
        )
    dearer = max(i for i, share in enumerate(shares[:-1]) if share >= percent)
    for site, grid in _between(ladder[dearer], ladder[dearer + 1], costs, percent / 100 * total, seed).items():
        full = full.with_methods(grid, site=site)
    return full


def floor_percent(steps: int) -> float:
    """What a plan costs that shares all attention from its first step on."""
    return 100 / steps


def _uniform(full: Plan, method: Method) -> Cells:
    """``method`` everywhere after the first step, which is FULL."""
    depth = {site: full.model.shape(site).layers for site in full.sites}
    return {site: [[Method.FULL] * n, *([method] * n for _ in range(full.steps - 1))] for site, n in depth.items()}


def _resampled(plan: Plan, full: Plan) -> Cells:
    """The methods of ``plan``, which has one site, at every site of ``full``."""
    rows = [plan.methods[step * plan.steps // full.steps] for step in range(full.steps)]
    depth = {site: full.model.shape(site).layers for site in full.sites}
    return {site: [[row[layer * plan.layers // n] for layer in range(n)] for row in rows] for site, n in depth.items()}


def _between(dearer: Cells, cheaper: Cells, costs: Costs, macs: float, seed: int) -> Cells:
    """Cells of ``dearer``, as many exchanged for those of ``cheaper`` as bring the MACs down to ``macs``."""
    cells = {site: [list(row) for row in grid] for site, grid in dearer.items()}
    places = [
        (site, step, layer)
        for site, grid in cells.items()
        for step in range(1, len(grid))
        for layer in range(len(grid[step]))
    ]
    random.Random(seed).shuffle(places)
    left = _macs(cells, costs) - macs
    for site, step, layer in places:
        if left <= 0:
            break
        new = cheaper[site][step][layer]
        left -= costs[site][cells[site][step][layer]] - costs[site][new]
        cells[site][step][layer] = new
    return cells


def _macs(cells: Cells, costs: Costs) -> int:
    return sum(costs[site][method] for site, grid in cells.items() for row in grid for method in row)


def _costs(full: Plan) -> Costs:
    found: Costs = {}
    for site in full.sites:
        shape, window = full.model.shape(site), full.window_of(site)
        found[site] = {
            m: shape.rows * method_macs(m, tokens=shape.tokens, width=full.model.width, window=window) for m in Method
        }
    return found
