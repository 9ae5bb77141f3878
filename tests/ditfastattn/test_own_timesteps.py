"""Plans at timesteps of their own: given to the sampler by every path, and refused where they cannot be."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from prepared_runs import close, run_eagerly
from pydantic import ValidationError
from small_models import everything, full_plan, label_denoiser, random_plan, same, sample, small_pipeline

import ditfastattn
from ditfastattn.errors import ApplyError, LoadError
from ditfastattn.fewer import fewer_steps, sampler_from
from ditfastattn.planned import Planned
from ditfastattn.resample import resample
from ditfastattn.samplers import make_sampler, sampler_spec, set_timesteps, settings_of
from ditfastattn.sampling import sample_latents
from plans import Method, Plan, PlanMismatch, SamplerSpec, dumps, loads
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


def test_two_plans_on_one_sampler_are_told_apart(pipe: Any) -> None:
    """What the other session says is not taken for the sampler's own refusal."""
    other = small_pipeline()
    other.scheduler = pipe.scheduler
    plan = full_plan(pipe, 8, 4.0)
    with (
        ditfastattn.apply(other, plan),
        ditfastattn.apply(pipe, plan.with_timesteps(OWN)),
        pytest.raises(PlanMismatch, match="step 1 is at 874 in the plan, at 870"),
    ):
        sample(pipe, 8)


def test_a_sampler_that_takes_none_is_refused(pipe: Any) -> None:
    pipe.scheduler = make_sampler("ddim", pipe.scheduler.config)
    plan = full_plan(pipe, 8, 4.0).with_timesteps(OWN)
    with pytest.raises(
        ApplyError, match=r"DDIMScheduler cannot make the plan's 8 steps \(the sampler takes no timesteps"
    ):
        ditfastattn.apply(pipe, plan)


@pytest.mark.parametrize(
    "setting", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"]
)
def test_settings_with_which_a_sampler_takes_none_are_refused(pipe: Any, setting: str) -> None:
    flow = {"prediction_type": "flow_prediction"} if setting == "use_flow_sigmas" else {}
    pipe.scheduler = DPMSolverMultistepScheduler(**{setting: True}, **flow)
    run = SamplerSpec(class_name="DPMSolverMultistepScheduler", settings={}, timesteps=OWN, own_timesteps=True)
    with pytest.raises(LoadError, match="does not take the plan's own timesteps with its settings"):
        sampler_spec(pipe.scheduler, run)
    sampler = run.model_copy(update={"settings": settings_of(pipe.scheduler)})
    plan = full_plan(small_pipeline(), 8, 4.0).with_timesteps(OWN)
    plan = plan.model_copy(update={"sampler": sampler})
    with pytest.raises(ApplyError, match="does not take the plan's own timesteps"):
        ditfastattn.apply(pipe, plan)
    with pytest.raises(LoadError, match="does not take the plan's own timesteps"):
        resample(plan, guidance=2.0)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        EulerDiscreteScheduler(interpolation_type="log_linear"),
        HeunDiscreteScheduler(),
    ],
)
def test_samplers_that_give_them_other_noise_are_refused(scheduler: Any) -> None:
    """Flow matching shifts, or spaces anew, what is given; the model would be told of another time than its noise."""
    times = (1000.0, 700.0, 200.0) if "Flow" in type(scheduler).__name__ else (999.0, 700.0, 200.0)
    run = SamplerSpec(class_name=type(scheduler).__name__, settings={}, timesteps=times, own_timesteps=True)
    with pytest.raises(LoadError, match="not with the noise that belongs to them"):
        sampler_spec(scheduler, run)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        EulerDiscreteScheduler(),
        DDPMScheduler(),
        DPMSolverMultistepScheduler(solver_order=3, algorithm_type="sde-dpmsolver++", final_sigmas_type="sigma_min"),
    ],
)
def test_samplers_that_take_them_as_they_are(scheduler: Any) -> None:
    run = SamplerSpec(
        class_name=type(scheduler).__name__, settings={}, timesteps=(999, 700, 200, 50), own_timesteps=True
    )
    assert sampler_spec(scheduler, run).timesteps == run.timesteps


def test_a_caller_who_names_timesteps_is_given_those(pipe: Any) -> None:
    """diffusers' sampler refuses both; it is not the plan that decides between them."""
    plan = full_plan(pipe, 8, 4.0).with_timesteps(OWN)
    with ditfastattn.apply(pipe, plan), pytest.raises(ValueError, match="Can only pass one"):
        pipe.scheduler.set_timesteps(8, timesteps=list(range(80, 0, -10)))


def test_options_that_a_sampler_takes_by_any_name() -> None:
    given: list[Any] = []

    def original(num_inference_steps: Any = None, device: Any = None, timesteps: Any = None, **more: Any) -> None:
        given.append((num_inference_steps, device, timesteps, more))

    run = SamplerSpec(class_name="Any", settings={}, timesteps=(9.5, 2), own_timesteps=True)
    set_timesteps(original, run, 2, "cpu", mu=1.0)
    assert given == [(None, "cpu", [9.5, 2], {"mu": 1.0})]


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
    [
        ((999, 870, 870, 600, 480, 333, 100, 7), "both at 870"),
        ((999, 800, 870, 600, 480, 333, 100, 7), "not increase"),
        ((1000, 870, 800, 600, 480, 333, 100, 7), "from 999 to 0, but step 0 is at 1000"),
        ((999, 870, 800, 600, 480, 333, 100, -1), "from 999 to 0, but step 7 is at -1"),
    ],
)
def test_timesteps_decrease_within_those_of_training(pipe: Any, timesteps: tuple[int, ...], said: str) -> None:
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
