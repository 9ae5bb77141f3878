"""Whether a sampler makes the steps that a plan is for: before it is asked to, and when it has been."""

from typing import Any

from ditfastattn.errors import ApplyError, LoadError, pydantic_reason
from ditfastattn.samplers import inference_steps, sampler_spec, settings_of
from plans import Plan, PlanMismatch
from plans.run import SamplerSpec


def sampler_differences(scheduler: Any, plan: Plan) -> list[str]:
    """Between the plan's steps and those that a copy of the sampler makes of as many, one sentence each.

    Raises:
        ApplyError: it cannot make them.
    """
    try:
        actual = sampler_spec(scheduler, plan.sampler, known_settings=plan.sampler.settings)
    except (LoadError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ApplyError(f"{type(scheduler).__name__} cannot make the plan's {plan.steps} steps ({reason})") from error
    return plan.differences(sampler=actual)


def check_begun(scheduler: Any, plan: Plan) -> None:
    """Raises PlanMismatch unless the run for which the sampler's timesteps were just set is the plan's."""
    try:
        actual = SamplerSpec(
            class_name=type(scheduler).__name__,
            settings=settings_of(scheduler, plan.sampler.settings),
            timesteps=tuple(scheduler.timesteps.tolist()),
        )
    except ValueError as error:  # timesteps that increase, say
        raise PlanMismatch([f"timesteps: the sampler's are not those of a plan ({pydantic_reason(error)})"]) from error
    found = plan.differences(sampler=actual)
    if len(actual.timesteps) != plan.steps:
        raise PlanMismatch(found, advice=f"sample with num_inference_steps={inference_steps(scheduler, plan.steps)}")
    if found:
        raise PlanMismatch(found)
