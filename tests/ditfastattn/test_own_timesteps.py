"""Plans at timesteps of their own: given to the sampler by every path, and refused where they cannot be."""

from typing import Any

import pytest
import torch
from prepared_runs import close, run_eagerly
from pydantic import ValidationError
from small_models import everything, full_plan, label_denoiser, random_plan, same, sample, small_pipeline

import ditfastattn
from ditfastattn.errors import ApplyError
from ditfastattn.fewer import fewer_steps, sampler_from
from ditfastattn.planned import Planned
from ditfastattn.resample import resample
from ditfastattn.samplers import make_sampler
from ditfastattn.sampling import sample_latents
from plans import Method, Plan, PlanMismatch, dumps, loads
from plans.compare import plan_differences
from plans.render import headline

OWN = (999, 870, 800, 600, 480, 333, 100, 7)


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def given_by_hand(pipe: Any, steps: int = len(OWN)) -> torch.Tensor:
    """What a user does without us: the sampler is told of the timesteps, then the pipeline runs."""
    original = pipe.scheduler.set_timesteps
    pipe.scheduler.set_timesteps = lambda *args, **kwargs: original(timesteps=list(OWN))
    try:
        return sample(pipe, steps)
    finally:
        del pipe.scheduler.set_timesteps


def test_a_full_plan_is_the_run_at_its_timesteps(pipe: Any) -> None:
    before, expected = everything(pipe), given_by_hand(pipe)
    plan = full_plan(pipe, 8, 4.0).with_timesteps(OWN)
    assert not torch.equal(expected, sample(pipe, 8))
    with ditfastattn.apply(pipe, plan):
        found = sample(pipe, 8)
        again = sample(pipe, 8)
    assert torch.equal(found, again)
    assert torch.equal(found, expected)
    assert same(before, everything(pipe))
    assert not torch.equal(sample(pipe, 8), expected)  # the sampler's own again


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
def test_prepared_steps_are_at_its_timesteps(pipe: Any) -> None:
    plan = random_plan(pipe, 8, 4.0, seed=3).with_timesteps(OWN)
    expected = run_eagerly(pipe, plan)
    with ditfastattn.apply(pipe, plan, graphs=True):
        assert close(sample(pipe, 8), expected) and close(sample(pipe, 8), expected)


def test_every_path_makes_the_same_latents(pipe: Any) -> None:
    plan = random_plan(pipe, 8, 4.0, seed=3).with_timesteps(OWN)
    denoiser = label_denoiser(pipe, (1, 2), 4.0)
    with ditfastattn.apply(pipe.transformer, plan):
        bare = sample_latents(denoiser, pipe.scheduler, plan.sampler, 0, range(2))
    with ditfastattn.apply(pipe, plan):
        by_count = sample_latents(denoiser, pipe.scheduler, 8, 0, range(2), copy=False)
        by_plan = sample_latents(denoiser, pipe.scheduler, plan.sampler, 0, range(2), copy=False)
    assert torch.equal(bare, by_count) and torch.equal(bare, by_plan)


def test_forecasts_are_over_the_plans_timesteps(pipe: Any) -> None:
    grid = [[Method.FULL] * 4 for _ in OWN]
    grid[5][0] = Method.AST_1
    plan = full_plan(pipe, 8, 4.0).with_methods(grid).with_timesteps(OWN)
    cell = Planned(plan).cells(0)["attn"][0][5]
    slope = (333 - 480) / (600 - 480)  # the line through the outputs at 600 and 480, at 333
    assert cell.weights == pytest.approx((1 - slope, slope))


@pytest.mark.parametrize("steps", [7, 9])
def test_another_number_of_steps_is_refused(pipe: Any, steps: int) -> None:
    plan = full_plan(pipe, 8, 4.0).with_timesteps(OWN)
    with (
        ditfastattn.apply(pipe, plan),
        pytest.raises(PlanMismatch, match=f"steps: the plan has 8, this sampler {steps}"),
    ):
        sample(pipe, steps)


def test_other_timesteps_are_refused(pipe: Any) -> None:
    plan = full_plan(pipe, 8, 4.0).with_timesteps(OWN)
    with ditfastattn.apply(pipe, plan), pytest.raises(PlanMismatch, match="step 1 is at 870 in the plan, at 871"):
        pipe.scheduler.set_timesteps(timesteps=[999, 871, *OWN[2:]])


def test_a_sampler_that_takes_none_is_refused(pipe: Any) -> None:
    pipe.scheduler = make_sampler("ddim", pipe.scheduler.config)
    plan = full_plan(pipe, 8, 4.0).with_timesteps(OWN)
    with pytest.raises(
        ApplyError, match=r"DDIMScheduler cannot make the plan's 8 steps \(the sampler takes no timesteps"
    ):
        ditfastattn.apply(pipe, plan)


def test_a_file_says_that_they_are_its_own(pipe: Any) -> None:
    usual = full_plan(pipe, 8, 4.0)
    plan = usual.with_timesteps(OWN)
    assert "own_timesteps" not in dumps(usual) and loads(dumps(plan)) == plan
    assert plan.calibration is None and plan.methods == usual.methods
    assert "8 steps at timesteps of its own" in headline(plan)
    same_times = usual.with_timesteps(usual.sampler.timesteps)
    assert plan_differences(usual, same_times) == [
        "timesteps: the second gives its own to the sampler, the first leaves them to it"
    ]


@pytest.mark.parametrize(
    ("timesteps", "said"),
    [((999, 870, 870, 600, 480, 333, 100, 7), "both at 870"), ((999, 800, 870, 600, 480, 333, 100, 7), "not increase")],
)
def test_timesteps_decrease(pipe: Any, timesteps: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        full_plan(pipe, 8, 4.0).with_timesteps(timesteps)


def test_one_for_every_step(pipe: Any) -> None:
    with pytest.raises(ValidationError, match="rows"):
        full_plan(pipe, 8, 4.0).with_timesteps(OWN[:-1])


def test_plans_that_travel(pipe: Any) -> None:
    plan: Plan = random_plan(pipe, 8, 4.0).with_timesteps(OWN)
    assert resample(plan, guidance=2.0).sampler == plan.sampler
    other = resample(plan, steps=6).sampler
    assert len(other.timesteps) == 6 and not other.own_timesteps
    assert fewer_steps(plan, 5).sampler.timesteps == full_plan(pipe, 5, 4.0).sampler.timesteps
    assert type(sampler_from(plan.sampler)) is type(pipe.scheduler)
