"""The plan of fewer steps that compresses nothing: what every compressed plan has to beat."""

import diffusers

from ditfastattn import samplers
from ditfastattn.errors import LoadError
from ditfastattn.samplers import inference_steps, sampler_spec
from plans import Plan, SamplerSpec
from plans.compare import sampler_differences
from plans.make import uncompressed


def fewer_steps(plan: Plan, steps: int) -> Plan:
    """All FULL over ``steps`` inference steps of the plan's own sampler, for the same model, guidance and window.

    Raises:
        LoadError: a number of steps that the sampler does not take, or a sampler that is not diffusers' or ours, or
            gives other timesteps today than it gave the plan.
    """
    scheduler = sampler_from(plan.sampler)
    trained = scheduler.config.num_train_timesteps
    if not 1 <= steps <= trained:
        raise LoadError(f"{plan.sampler.class_name} cannot take {steps} steps; give 1 to {trained}")
    note = f"nothing compressed: {steps} steps instead of {inference_steps(scheduler, plan.steps)}"
    return uncompressed(plan, note, sampler_spec(scheduler, steps))


def sampler_from(spec: SamplerSpec) -> diffusers.SchedulerMixin:
    """The scheduler that a plan records.

    Raises:
        LoadError: there is no such class, or what it makes of the settings is not what the plan records.
    """
    cls = getattr(samplers, spec.class_name, None) or getattr(diffusers, spec.class_name, None)
    if cls is None or not issubclass(cls, diffusers.SchedulerMixin):
        raise LoadError(f"{spec.class_name} is no sampler of diffusers, so its steps cannot be chosen anew here")
    settings = {name: float(value) if value in ("inf", "-inf") else value for name, value in spec.settings.items()}
    scheduler = cls.from_config(settings)
    actual = sampler_spec(scheduler, spec, spec.settings)
    if differences := sampler_differences(spec, actual, theirs="the one made of it"):
        raise LoadError("the plan's sampler cannot be made anew with this diffusers: " + "; ".join(differences))
    return scheduler
