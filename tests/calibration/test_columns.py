"""Schedules of a layer, and the choice among them, against trying everything."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.choose import least_cost, least_error
from calibration.columns import Choice, Schedule, cell_errors, schedules
from calibration.errors import CalibrationError
from ditfastattn.cache import Rows, liveness
from plans import Method

LONGEST = 3
COSTS = {
    Choice(Method.FULL): 10.0,
    Choice(Method.FULL, Rows.CONDITIONAL_HALF): 11.0,
    Choice(Method.FULL, Rows.WHOLE_BATCH): 12.0,
    Choice(Method.ASC): 6.0,
    Choice(Method.ASC, Rows.CONDITIONAL_HALF): 7.0,
    Choice(Method.WA_RS): 5.0,
    Choice(Method.WA_RS_ASC): 3.0,
    Choice(Method.AST): 1.0,
}


def errors_from(seed: int, steps: int, layers: int = 1):
    """Random, growing with age."""
    table = np.random.default_rng(seed).random((steps, len(Method), 2, layers))
    order = list(Method)

    def errors(step: int, method: Method, age: int, gap: int) -> np.ndarray:
        if method is Method.FULL:
            return np.zeros(layers)
        base, growth = table[step, order.index(method)]
        return np.full(layers, np.inf) if age > LONGEST else base * (1 + growth) ** age

    return errors


def cost_of(methods: tuple[Method, ...]) -> float:
    """By what the runtime would store."""
    return sum(COSTS[Choice(cell.method, cell.store_residual)] for cell in liveness(methods))


def everything(steps: int, errors, layer: int = 0) -> list[Schedule]:
    found = []
    for rest in itertools.product([m for m in Method if Choice(m) in COSTS or m is Method.FULL], repeat=steps - 1):
        methods = (Method.FULL, *rest)
        error = sum(cell_errors(methods, layer, errors))
        if error < float("inf") and _residuals_young_enough(methods):
            found.append(Schedule(cost_of(methods), error, methods))
    return found


def _residuals_young_enough(methods: tuple[Method, ...]) -> bool:
    refreshed = 0
    for step, method in enumerate(methods):
        if method.refreshes_residual:
            refreshed = step
        elif method.windowed and step - refreshed > LONGEST:
            return False
    return True


def hull(points: list[Schedule]) -> tuple[list[float], list[float]]:
    """The lower convex hull of (cost, error), from the cheapest on: Andrew's monotone chain."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted((one.cost, one.error) for one in points):
        while len(kept) > 1 and (kept[-1][0] - kept[-2][0]) * (y - kept[-2][1]) <= (kept[-1][1] - kept[-2][1]) * (
            x - kept[-2][0]
        ):
            kept.pop()
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return [x for x, _ in kept], [y for _, y in kept]


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(2, 4))
def test_schedules_are_nearly_the_hull_of_all(seed, steps):
    errors = errors_from(seed, steps, layers=2)
    for layer, found in enumerate(schedules(steps, COSTS, errors, LONGEST)):
        all_of_them = everything(steps, errors, layer)
        for schedule in found:
            assert schedule.error == pytest.approx(sum(cell_errors(schedule.methods, layer, errors)))
            assert schedule.cost == pytest.approx(cost_of(schedule.methods))
        corners = hull(all_of_them)
        for one in found:  # every one is on the hull
            assert one.error <= np.interp(one.cost, *corners) * (1 + 1e-9) + 1e-12
        for price in np.geomspace(1e-3, 1e2, 25):
            ours = min(one.error + price * one.cost for one in found)
            best = min(one.error + price * one.cost for one in all_of_them)
            assert ours <= best * 1.05 + 1e-12  # between two prices the best may be left out
        assert found[0].error == 0  # all FULL
        assert found[-1].cost == pytest.approx(min(one.cost for one in all_of_them))


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_choice_is_the_best_of_all_choices(seed):
    menus = [menu[:6] for menu in schedules(4, COSTS, errors_from(seed, 4, layers=3), LONGEST)]
    picks = list(itertools.product(*menus))
    limit = float(np.mean([sum(one.cost for one in pick) for pick in picks]))
    chosen = least_error(menus, limit)
    best = min(sum(one.error for one in pick) for pick in picks if sum(one.cost for one in pick) <= limit)
    assert sum(one.cost for one in chosen) <= limit * (1 + 1e-6)
    assert sum(one.error for one in chosen) == pytest.approx(best, rel=1e-3)
    allowed = sum(one.error for one in chosen)
    assert sum(one.cost for one in least_cost(menus, allowed)) <= sum(one.cost for one in chosen) * (1 + 1e-3)


def test_what_cannot_be_had_is_said():
    menus = schedules(4, COSTS, errors_from(0, 4), LONGEST)
    with pytest.raises(CalibrationError, match="the cheapest costs"):
        least_error(menus, 1.0)
    with pytest.raises(CalibrationError, match="the least that plans have"):
        least_cost([menus[0][1:]], 0.0)


def test_one_step_is_full() -> None:
    menus = schedules(1, COSTS, errors_from(0, 1, layers=2), LONGEST)
    assert menus == [[Schedule(10.0, 0.0, (Method.FULL,))]] * 2


def test_a_choice_without_a_cost_is_never_taken():
    costs = {choice: cost for choice, cost in COSTS.items() if not choice.method.windowed}
    taken = {method for one in schedules(5, costs, errors_from(1, 5), LONGEST)[0] for method in one.methods}
    assert taken <= {Method.FULL, Method.ASC, Method.AST}
