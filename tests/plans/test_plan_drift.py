"""What a plan keeps of sensitivities and budgets: written only where they are, checked, and shown."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from plan_examples import golden

from plans import Budget, Plan, dumps, loads
from plans.render import costline, curve

BUDGET = Budget(asked=0.1, predicted=0.07, achieved=(0.08, 0.09), upper=0.097)


def weighted(steps: int | None = None, **more: Any) -> Plan:
    plan = next(plan for plan in golden().values() if plan.calibration is not None)
    assert plan.calibration is not None
    steps = plan.steps if steps is None else steps
    weights = (0.0, *(10.0 / (step + 1) for step in range(steps - 1)))
    record = plan.calibration.model_copy(update={"sensitivity": weights, **more})
    return Plan(**{name: getattr(plan, name) for name in type(plan).model_fields} | {"calibration": record})


def test_they_come_back_and_are_not_written_where_there_are_none() -> None:
    plan = weighted(budget=BUDGET)
    assert loads(dumps(plan)) == plan
    written = json.loads(dumps(plan))["calibration"]
    assert written["budget"]["achieved"] == [0.08, 0.09] and len(written["sensitivity"]) == plan.steps
    for other in golden().values():
        if other.calibration is not None:
            assert not {"budget", "sensitivity"} & json.loads(dumps(other))["calibration"].keys()


def test_one_sensitivity_a_step() -> None:
    with pytest.raises(ValueError, match=r"calibration\.sensitivity has 3 numbers"):
        weighted(3)


def test_a_budget_is_named_in_place_of_the_price() -> None:
    assert "final drift within 0.1;" in costline(weighted(budget=BUDGET))
    assert "threshold" in costline(weighted())


def test_the_curve_tells_small_values_from_none() -> None:
    assert curve([0.0, 1.0, 0.01, 0.0001]) == " █▃▁"
    assert curve([0.0, 0.0]) == "  " and curve([]) == ""


def test_the_picture_has_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from plans.figure import figure, picture

    plan = weighted()
    axes = figure(plan).axes
    plain = figure(next(p for p in golden().values() if p.calibration is not None))
    assert len(axes) == len(plain.axes) + 1
    (curve_axes,) = [a for a in axes if a.get_yscale() == "log"]
    assert len(curve_axes.lines[0].get_xdata()) == plan.steps - 1  # step 0 has none
    boxes = sorted((a.get_position().y0, a.get_position().y1) for a in axes)
    assert all(upper[0] >= lower[1] for lower, upper in pairwise(boxes))  # none covers another
    picture(plan, tmp_path / "plan.png")
