"""The rules of a plan, and how it is compared with what it is applied to."""

from __future__ import annotations

import re
from typing import Any

import pytest
from plan_examples import COND_FIRST, DIT_12, NO_GUIDANCE, calibration, dpm_solver, golden, heun, synthetic
from pydantic import ValidationError

from plans import (
    Calibration,
    GuidanceSpec,
    Method,
    ModelSpec,
    Plan,
    PlanError,
    PlanMismatch,
    SamplerSpec,
    Window,
)
from plans.method import PAPER


def full(**changes: Any) -> Plan:
    return Plan.full(**({"model": DIT_12, "sampler": dpm_solver(4), "guidance": COND_FIRST} | changes))


def test_methods_stand_in_cost_order_and_are_their_names() -> None:
    assert [str(method) for method in Method] == ["AST", "AST_1", "AST_2", "WA_RS_ASC", "WA_RS", "ASC", "FULL"]
    assert [str(method) for method in PAPER] == ["AST", "WA_RS_ASC", "WA_RS", "ASC", "FULL"]
    assert all(method.value == method.name for method in Method)
    assert len({method.letter for method in Method}) == len(Method)


@pytest.mark.parametrize(
    ("method", "reuses", "windowed", "shares", "refreshes"),
    [
        (Method.AST, True, False, False, False),
        (Method.AST_1, True, False, False, False),
        (Method.AST_2, True, False, False, False),
        (Method.WA_RS_ASC, False, True, True, False),
        (Method.WA_RS, False, True, False, False),
        (Method.ASC, False, False, True, True),
        (Method.FULL, False, False, False, True),
    ],
)
def test_what_each_method_does(method: Method, reuses: bool, windowed: bool, shares: bool, refreshes: bool) -> None:
    assert method.reuses_output is reuses
    assert method.windowed is windowed
    assert method.shares_guidance is shares
    assert method.refreshes_residual is refreshes


def test_window_text_and_default() -> None:
    assert Window.parse("32") == Window(left=32, right=32)
    assert Window.parse(" 32 , 16 ") == Window(left=32, right=16)
    assert Window.parse(str(Window(left=3, right=0))) == Window(left=3, right=0)
    assert Window.default(1024) == Window(left=128, right=128)


@pytest.mark.parametrize("text", ["", "a", "-1", "1,2,3", "1,", "1.5", "²", "٣"])
def test_window_text_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 32 or 32,16"):
        Window.parse(text)


def test_full_plan() -> None:
    plan = full()
    assert (plan.steps, plan.layers) == (4, 12)
    assert plan.methods == ((Method.FULL,) * 12,) * 4
    assert plan.window == Window.default(256)
    assert plan.calibration is None


def test_column_and_properties_follow_the_grid() -> None:
    plan = golden()["dit-12x50"]
    assert plan.column(3) == tuple(plan.methods[step][3] for step in range(50))
    assert plan.methods is plan.sites["attn"].methods
    assert plan.losses is plan.sites["attn"].losses


def test_with_methods_keeps_the_calibration_only_with_losses() -> None:
    plan = golden()["dit-12x50"]
    again = plan.with_methods(plan.methods, plan.losses)
    assert again == plan
    by_hand = plan.with_methods(plan.methods)
    assert by_hand.calibration is None
    assert {loss for row in by_hand.losses for loss in row} == {None}


def test_plans_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        full().note = "changed"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: full().with_methods([[Method.FULL] * 12] * 3),
            "has 3 rows, but the sampler has 4 timesteps",
        ),
        (lambda: full().with_methods([[Method.FULL] * 11] * 4), "has 11 cells, but the model has 12 layers"),
        (lambda: full().with_methods([[Method.AST] * 12] * 4), "step 0 has AST in layer 0"),
        (
            lambda: full(guidance=NO_GUIDANCE).with_methods([[Method.FULL] * 12] * 3 + [[Method.ASC] * 12]),
            "step 3 has ASC in layer 0, but the guidance layout is 'none'",
        ),
        (
            lambda: full(guidance=NO_GUIDANCE).with_methods([[Method.FULL] * 12] * 3 + [[Method.WA_RS_ASC] * 12]),
            "step 3 has WA_RS_ASC in layer 0",
        ),
        (lambda: full().with_methods([[Method.FULL] * 12] * 4, [[0.1] * 12] * 3), "losses has 3 rows"),
        (lambda: full().with_methods([[Method.FULL] * 12] * 4, [[0.1] * 13] * 4), "losses[0] has 13 cells"),
        (
            lambda: full().with_methods([[Method.FULL] * 12] * 4, [[-0.1] * 12] * 4),
            "greater than or equal to 0",
        ),
        (lambda: full().with_methods([[Method.FULL] * 12] * 4, [[float("inf")] * 12] * 4), "finite number"),
        (
            lambda: full(window=Window(left=257, right=0)),
            "window.left is 257, more than the model's 256 tokens",
        ),
        (lambda: full(window=Window(left=0, right=257)), "window.right is 257"),
        (lambda: Window(left=-1, right=0), "greater than or equal to 0"),
        (lambda: Window(left=1.0, right=0), "valid integer"),
        (lambda: GuidanceSpec(scale=1, layout="cond_first"), "scale 1 does not go with layout 'cond_first'"),
        (lambda: GuidanceSpec(scale=4, layout="none"), "scale 4 does not go with layout 'none'"),
        (lambda: GuidanceSpec(scale=0.5, layout="none"), "greater than or equal to 1"),
        (lambda: GuidanceSpec(scale=True, layout="none"), "valid number"),
        (lambda: SamplerSpec(class_name="S", settings={}, timesteps=()), "at least 1 item"),
        (lambda: SamplerSpec(class_name="S", settings={}, timesteps=(1.0, 2.0)), "step 1 is at 2 after 1"),
        (lambda: SamplerSpec(class_name="S", settings={}, timesteps=(float("nan"),)), "finite number"),
        (
            lambda: SamplerSpec(class_name="S", settings={"a": {}}, timesteps=(1.0,)),
            "a dict is not a setting",
        ),
        (
            lambda: SamplerSpec(class_name="S", settings={"a": [[1]]}, timesteps=(1.0,)),
            "a list is not a setting",
        ),
        (lambda: SamplerSpec(class_name="S", settings={"a": float("nan")}, timesteps=(1.0,)), "not a finite"),
        (lambda: SamplerSpec(class_name="", settings={}, timesteps=(1.0,)), "at least 1 character"),
        (lambda: SamplerSpec(class_name="\x1b[2J", settings={}, timesteps=(1.0,)), "cannot be printed"),
        (lambda: ModelSpec(**DIT_12.model_dump() | {"layers": 0}), "greater than or equal to 1"),
        (lambda: ModelSpec(**DIT_12.model_dump() | {"layers": True}), "valid integer"),
        (lambda: ModelSpec(**DIT_12.model_dump() | {"depth": 1}), "Extra inputs are not permitted"),
        (lambda: calibration(created="yesterday"), "'yesterday' is not an ISO 8601 time"),
        (lambda: calibration(threshold=float("nan")), "finite number"),
        (lambda: Calibration(**calibration().model_dump() | {"seed": "0"}), "valid integer"),
        (lambda: Plan(**dict(full()) | {"sites": {}}), "sites has no 'attn'"),
        (lambda: Plan(**dict(full()) | {"sites": {"words": full().sites["attn"]}}), "Input should be 'attn'"),
        (lambda: Plan(**dict(full()) | {"token_order": "spiral"}), "Input should be 'raster', 'tile' or 'hilbert'"),
    ],
)
def test_broken_rules_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        make()


def test_equal_timesteps_in_a_row_are_two_calls() -> None:
    plan = synthetic(DIT_12, heun(10), COND_FIRST)
    assert plan.steps == 19
    assert plan.sampler.timesteps[1] == plan.sampler.timesteps[2]


def test_no_difference_to_itself() -> None:
    plan = golden()["dit-12x50"]
    assert plan.differences(model=plan.model, sampler=plan.sampler, guidance=plan.guidance) == []
    assert plan.differences() == []


def test_every_difference_is_listed_at_once() -> None:
    plan = golden()["dit-12x50"]
    model = ModelSpec(**plan.model.model_dump() | {"layers": 28, "tokens": 1024})
    settings = {**plan.sampler.settings, "solver_order": 3, "use_karras_sigmas": True}
    del settings["thresholding"]
    sampler = SamplerSpec(class_name=plan.sampler.class_name, settings=settings, timesteps=(999.0,) * 25)
    found = plan.differences(model=model, sampler=sampler, guidance=GuidanceSpec(scale=7, layout="uncond_first"))
    assert found == [
        "layers: the plan has 12, this model 28",
        "tokens: the plan has 256, this model 1024",
        "sampler setting solver_order: the plan has 2, this sampler 3",
        "sampler setting thresholding: the plan has False, this sampler has no such setting",
        "sampler setting use_karras_sigmas: the plan has no such setting, this sampler has True",
        "steps: the plan has 50, this sampler 25",
        "guidance scale: the plan has 4, this run 7",
        "guidance layout: the plan has cond_first, this run uncond_first",
    ]


def test_the_settings_of_another_sampler_are_not_compared() -> None:
    plan = golden()["dit-12x50"]
    other = SamplerSpec(class_name="DDIMScheduler", settings={"eta": 0.5}, timesteps=plan.sampler.timesteps)
    assert plan.differences(sampler=other) == [
        "sampler: the plan has DPMSolverMultistepScheduler, this sampler DDIMScheduler"
    ]


@pytest.mark.parametrize(("shift", "count"), [(0.0009, 0), (0.0011, 1)])
def test_timesteps_are_compared_with_a_tolerance(shift: float, count: int) -> None:
    plan = golden()["dit-12x50"]
    times = [time - shift * (index in (7, 9)) for index, time in enumerate(plan.sampler.timesteps)]
    found = plan.differences(sampler=plan.sampler.model_copy(update={"timesteps": tuple(times)}))
    assert len(found) == count
    if found:
        assert found[0].startswith("timesteps: step 7 is at 859 in the plan, at 858.9989 in this sampler")
        assert found[0].endswith("(the first of 2 that differ)")


def test_a_mismatch_lists_everything() -> None:
    error = PlanMismatch(["steps: the plan has 50, this sampler 25", "tokens: the plan has 1, this model 2"])
    assert isinstance(error, PlanError)
    assert error.differences == [
        "steps: the plan has 50, this sampler 25",
        "tokens: the plan has 1, this model 2",
    ]
    assert all(difference in str(error) for difference in error.differences)
