"""Plans of a given cost for models that could not be calibrated here: synthetic, and called that wherever they show.

A synthetic plan takes its methods from the six plans that were calibrated on the bundled demo, layers resampled to the
model's depth: cell by cell from two neighbouring ones, in such a proportion that the attention MACs come out right.
"""

import random
from importlib.resources import files

from ditfastattn.errors import DitFastAttnError
from plans import Method, Plan, loads
from plans.macs import method_macs, plan_macs

Cells = list[list[Method]]  # [step][layer]


def demo_plans() -> list[Plan]:
    """The calibrated plans of the bundled demo, dearest first."""
    folder = files("plans") / "library"
    found = [loads(file.read_text(), source=file.name) for file in folder.iterdir() if file.name.endswith(".json")]
    return sorted(found, key=lambda plan: -plan_macs(plan).percent)


def synthetic_plan(full: Plan, percent: float, seed: int = 0) -> Plan:
    """A plan like ``full`` whose attention MACs are ``percent`` of all FULL (projections counted), to half a percent.

    Raises:
        DitFastAttnError: a plan whose first step is FULL cannot cost so little, or none so much.
    """
    steps, layers = full.steps, full.layers
    ladder = [_resampled(plan, steps, layers) for plan in demo_plans()]
    ladder = [
        [[Method.FULL] * layers] * steps,
        *ladder,
        [[Method.FULL] * layers, *[[Method.AST] * layers] * (steps - 1)],
    ]
    shares = [_percent(full, cells) for cells in ladder]
    if not shares[-1] <= percent <= 100:
        raise DitFastAttnError(
            f"a plan of {steps} steps costs between {shares[-1]:.1f} and 100 % of full, not {percent:g} %"
        )
    dearer = max(i for i, share in enumerate(shares[:-1]) if share >= percent)
    return full.with_methods(_between(full, ladder[dearer], ladder[dearer + 1], percent, seed))


def floor_percent(steps: int) -> float:
    """What a plan costs that shares all attention from its first step on."""
    return 100 / steps


def _resampled(plan: Plan, steps: int, layers: int) -> Cells:
    rows = [plan.methods[step * plan.steps // steps] for step in range(steps)]
    return [[row[layer * plan.layers // layers] for layer in range(layers)] for row in rows]


def _between(full: Plan, dearer: Cells, cheaper: Cells, percent: float, seed: int) -> Cells:
    """Cells of ``dearer``, as many exchanged for those of ``cheaper`` as bring the MACs down to ``percent``."""
    cost, total = _costs(full), full.steps * full.layers
    places = [(step, layer) for step in range(1, full.steps) for layer in range(full.layers)]
    random.Random(seed).shuffle(places)
    cells = [list(row) for row in dearer]
    left = sum(cost[method] for row in cells for method in row) - percent / 100 * total * cost[Method.FULL]
    for step, layer in places:
        if left <= 0:
            break
        left -= cost[cells[step][layer]] - cost[cheaper[step][layer]]
        cells[step][layer] = cheaper[step][layer]
    return cells


def _percent(full: Plan, cells: Cells) -> float:
    cost = _costs(full)
    return 100 * sum(cost[method] for row in cells for method in row) / (full.steps * full.layers * cost[Method.FULL])


def _costs(full: Plan) -> dict[Method, int]:
    model = full.model
    return {m: method_macs(m, tokens=model.tokens, width=model.width, window=full.window) for m in Method}
