"""Plans from a table of errors: within their budgets, counted as plans count, forecasts included."""

import numpy as np
import pytest

from calibration.columns import Choice
from calibration.error_table import ErrorTable
from calibration.fast import Menu
from calibration.parts import Part
from calibration.prices import Macs
from ditfastattn.cache import Rows, liveness
from plans import GuidanceSpec, Method, ModelSpec, Plan, SamplerSpec
from plans.macs import plan_macs, total_macs
from plans.method import PAPER

CANDIDATES = tuple(method for method in Method if method is not Method.FULL)


def full_plan() -> Plan:
    return Plan.full(
        model=ModelSpec(class_name="Some", layers=2, heads=2, head_dim=8, tokens=16, in_channels=4, out_channels=8),
        sampler=SamplerSpec(class_name="Mine", settings={}, timesteps=tuple(float(t) for t in range(900, 0, -150))),
        guidance=GuidanceSpec(scale=4.0, layout="cond_first"),
    ).with_mlp()


def random_table(plan: Plan, longest: int = 2, seed: int = 0) -> ErrorTable:
    parts = [Part(site, layer, layer) for layer in range(plan.layers) for site in ("attn", "mlp")]
    random = np.random.default_rng(seed)
    table = ErrorTable(plan.steps, parts)
    for method in CANDIDATES:
        ages = range(1, longest + 1) if method.reuses_output or method.windowed else (0,)
        for age in ages:
            for gap in range(1, longest + 1) if method.forecasts else (0,):
                table.along[method, age, gap] = (age + 1) * random.random((plan.steps, len(parts), 1)) * 1e-2
    return table


def test_costs_are_those_that_plans_count() -> None:
    plan = full_plan()
    costs = Macs().choices(plan, "attn", CANDIDATES)
    column = [Method.FULL, Method.WA_RS, Method.FULL, Method.WA_RS_ASC, Method.ASC, Method.WA_RS, Method.AST]
    column = (column * plan.steps)[: plan.steps]
    summed = sum(costs[Choice(cell.method, cell.store_residual)] for cell in liveness(column))
    grid = [[method] * plan.layers for method in column]
    counted = plan_macs(plan.with_methods(grid))
    assert plan.layers * summed == pytest.approx(counted.total + counted.residual_store)
    assert Macs().choices(plan, "mlp", CANDIDATES)[Choice(Method.FULL)] * plan.layers + costs[Choice(Method.FULL)] * (
        plan.layers
    ) == pytest.approx(total_macs(plan).full_step)
    assert set(Macs().choices(plan, "attn", [Method.AST])) == {Choice(Method.FULL), Choice(Method.AST)}
    assert Choice(Method.ASC, Rows.WHOLE_BATCH) not in costs


def drift_of(menu: Menu, plan: Plan) -> float:
    return float(np.sqrt(menu.errors_of(plan).sum()))


@pytest.mark.parametrize("candidates", [CANDIDATES, [m for m in PAPER if m is not Method.FULL]])
def test_plans_keep_within_their_budgets(candidates: list[Method]) -> None:
    plan = full_plan()
    weights = np.linspace(3, 0.5, plan.steps)
    menu = Menu(plan, random_table(plan), weights, candidates, longest=2)
    shares = []
    for drift in (0.0, 0.02, 0.05, 0.1):
        found = menu.within(drift)
        assert drift_of(menu, found) <= drift * (1 + 1e-6)
        shares.append(total_macs(found).percent)
    assert shares[0] == 100 and shares == sorted(shares, reverse=True) and shares[-1] < 90
    macs = total_macs(found)
    budget = macs.total + macs.residual_store
    again = menu.costing(budget)
    assert drift_of(menu, again) <= drift_of(menu, found) * (1 + 1e-6)
    counted = total_macs(again)
    assert counted.total + counted.residual_store <= budget * (1 + 1e-6)
    used = {method for site in found.sites.values() for row in site.methods for method in row}
    assert used <= {Method.FULL, *candidates}
