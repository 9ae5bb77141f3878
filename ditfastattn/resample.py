"""A plan for another run of the same model, from the numbers that a user names: steps, sampler, guidance, size."""

from typing import Any

from pydantic import ValidationError

from ditfastattn.errors import LoadError
from ditfastattn.fewer import sampler_from
from ditfastattn.samplers import inference_steps, make_sampler, sampler_spec
from plans import GuidanceSpec, ModelSpec, Plan, SamplerSpec
from plans.errors import explain
from plans.resample import resampled


def resample(
    plan: Plan,
    *,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    tokens: int | None = None,
    frames: int | None = None,
) -> Plan:
    """`plans.resample.resampled` of what is given; all else stays as it is in the plan.

    Args:
        steps: inference steps of the sampler.
        sampler: a name of `ditfastattn.samplers.SAMPLERS`, made for the plan's own training noise.
        guidance: its scale; 1 is none.
        tokens: of an image or frame.
        frames: of a video, as the model counts them.

    Raises:
        LoadError: nothing to change; numbers that the sampler, the guidance or the model cannot have; a sampler that
            cannot be made anew.
    """
    if (steps, sampler, guidance, tokens, frames) == (None,) * 5:
        raise LoadError(
            "nothing changes, so this is the plan itself; give steps, a sampler, guidance, tokens or frames"
        )
    scheduler = sampler_from(plan.sampler)
    run: int | SamplerSpec = plan.sampler
    if steps is not None or sampler is not None:
        run = inference_steps(scheduler, plan.steps) if steps is None else steps
        if sampler is not None:
            scheduler = make_sampler(sampler, scheduler.config)
        trained = scheduler.config.num_train_timesteps
        if not 1 <= run <= trained:
            raise LoadError(f"{type(scheduler).__name__} cannot take {run} steps; give 1 to {trained}")
    try:
        return resampled(
            plan,
            sampler_spec(scheduler, run),
            _sized(plan.model, tokens, frames),
            None if guidance is None else _scaled(plan.guidance, guidance),
        )
    except ValidationError as error:
        raise LoadError(f"there is no such plan: {explain(error)}") from None
    except ValueError as error:
        raise LoadError(str(error)) from None


def _sized(model: ModelSpec, tokens: int | None, frames: int | None) -> ModelSpec:
    """Raises LoadError for frames of a model of images."""
    changes: dict[str, Any] = {} if tokens is None else {"tokens": tokens}
    if frames is not None:
        if model.temporal is None:
            raise LoadError(f"{model.class_name} has no attention between frames; leave frames out")
        changes["temporal"] = {"layers": model.temporal.layers, "frames": frames}
    fields: dict[str, Any] = {name: getattr(model, name) for name in type(model).model_fields}
    return ModelSpec(**fields | changes)


def _scaled(guidance: GuidanceSpec, scale: float) -> GuidanceSpec:
    """Raises LoadError for guidance where the plan has none: it does not say which half of a batch comes first."""
    if scale == 1:
        return GuidanceSpec(scale=1.0, layout="none")
    if guidance.layout == "none":
        raise LoadError(
            "the plan has no guidance, so it does not say which half of a guided batch is the conditional one; "
            "resample a plan with guidance"
        )
    return GuidanceSpec(scale=scale, layout=guidance.layout)
