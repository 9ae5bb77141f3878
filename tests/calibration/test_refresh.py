"""Rhythms against trying every set of steps, and their plans."""

import itertools

import numpy as np
import pytest
from test_fast import full_plan, random_table

from calibration.errors import CalibrationError
from calibration.refresh import Rhythms
from plans import Method
from plans.macs import total_macs

ORDERS = (Method.AST, Method.AST_1)
LONGEST = 2


def drift_of(plan_steps: int, methods: tuple[Method, ...], table, weights) -> float:
    """Of one rhythm of all parts, step by step."""
    total, computed = 0.0, [0]
    for step in range(1, plan_steps):
        if methods[step] is Method.FULL:
            computed.append(step)
            continue
        gap = computed[-1] - computed[-2] if len(computed) > 1 else 0
        age = step - computed[-1]
        if age > LONGEST or (methods[step].forecasts and not 0 < gap <= LONGEST):
            return float("inf")
        vectors = table.along[methods[step], age, gap if methods[step].forecasts else 0][step]
        total += float(weights[step] ** 2 * np.square(vectors.sum(0)).sum())
    return float(np.sqrt(total))


def test_rhythms_are_the_hull_of_all() -> None:
    plan = full_plan()
    table, weights = random_table(plan, LONGEST), np.linspace(3, 0.5, plan.steps)
    rhythms = Rhythms(plan, table, weights, ORDERS, LONGEST)
    ours = [one.schedule for one in rhythms.rhythms if not one.always]
    for one in ours:
        assert one.error == pytest.approx(drift_of(plan.steps, one.methods, table, weights) ** 2, abs=1e-15)
    step_macs = total_macs(plan).full_step
    everything = [
        (drift, step_macs * (2 + rest.count(Method.FULL)))
        for rest in itertools.product((*ORDERS, Method.FULL), repeat=plan.steps - 2)  # the last step is computed too
        for drift in [drift_of(plan.steps, (Method.FULL, *rest, Method.FULL), table, weights)]
    ]
    for price in np.geomspace(1e-12, 1e-7, 20):
        best = min(drift**2 + price * macs for drift, macs in everything)
        assert min(one.error + price * one.cost for one in ours) <= best * 1.05 + 1e-15


def test_plans_keep_within_their_macs_and_compute_together() -> None:
    plan = full_plan()
    rhythms = Rhythms(plan, random_table(plan, LONGEST), np.ones(plan.steps), ORDERS, LONGEST)
    full, errors = total_macs(plan).full, [rhythm.schedule.error for rhythm in rhythms.rhythms]
    assert rhythms.costing(full) == plan and min(errors) == 0
    for share in (0.8, 0.6, 0.5):
        found = rhythms.costing(share * full)
        assert total_macs(found).total <= share * full * (1 + 1e-9)
        columns = {found.column(layer, site) for site in found.sites for layer in range(plan.layers)}
        assert len(columns - {(Method.FULL,) * plan.steps}) <= 1  # one rhythm, or computed always
        affordable = [one.schedule.error for one in rhythms.rhythms if one.schedule.cost <= share * full]
        chosen = [one.schedule.error for one in rhythms.rhythms if one.schedule.methods in columns]
        assert min(affordable) in chosen
    with pytest.raises(CalibrationError, match="the cheapest costs"):
        rhythms.costing(0.01 * full)
