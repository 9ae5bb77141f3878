"""One uncompressed prediction before a search, followed as a plan follows a sampler: what would go wrong later is told
at once.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import ditfastattn
from calibration.errors import CalibrationError
from ditfastattn.errors import DitFastAttnError
from ditfastattn.install import Overrides
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.samplers import settings_of
from ditfastattn.sampling import Trajectory
from plans import Plan, SamplerSpec


def rehearse(adapter: ModelAdapter, plan: Plan, run: Trajectory) -> Call:
    """The model call of a run's first step, which is left where it stands.

    A session compares the call with the plan: its timestep, its guidance branches, that every layer runs once, and what
    a registration says of each attention.

    Args:
        plan: all FULL.

    Raises:
        StepError, PlanMismatch: the session's; a plan found this way could not be followed.
        CalibrationError: the model was not called, or gave something else than the sampler and the losses count on,
            or the sampler cannot go on from it.
    """
    calls: list[Call] = []

    def seen(original: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(adapter.read_call(args, kwargs))
        return original(*args, **kwargs)

    overrides, name = Overrides(), type(adapter.model).__name__
    overrides.set(adapter.model, "forward", partial(seen, adapter.model.forward))
    try:
        with ditfastattn.apply(adapter.model, plan, kernel="sdpa"):
            output = run.predict(0)
    finally:
        overrides.restore()
    if not calls:
        raise CalibrationError(f"a prediction did not call {name}: let predict= call the model itself, once")
    _check(output, name, plan, run)
    _step(output, plan, run)
    return calls[0]


def _step(output: Tensor, plan: Plan, run: Trajectory) -> None:
    """The sampler, given what the model predicts."""
    name, ahead = type(run.scheduler).__name__, run.fork()
    settings = settings_of(run.scheduler, plan.sampler.settings)
    actual = SamplerSpec(class_name=name, settings=settings, timesteps=plan.sampler.timesteps)
    changed = plan.differences(sampler=actual)
    if changed:
        raise CalibrationError(
            f"{name} changes its own settings when it is given its steps ({'; '.join(changed)}), and no plan would fit "
            "it: make it with the settings that it ends with"
        )
    try:
        ahead.advance(0, output)
    except (DitFastAttnError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a sampler raises
        reason = " ".join(str(error).split())[:200]
        raise CalibrationError(
            f"{name} cannot step with a prediction {tuple(run.guided(output).shape)} alone ({type(error).__name__}: "
            f"{reason}): choose another sampler"
        ) from error
    if ahead.latents.shape != run.latents.shape:
        raise CalibrationError(f"{name} makes {tuple(ahead.latents.shape)} of latents {tuple(run.latents.shape)}")


def _check(output: Tensor, name: str, plan: Plan, run: Trajectory) -> None:
    shape, rows = run.denoiser.condition.latent_shape, run.denoiser.rows
    channels = plan.model.out_channels
    expected = (rows, channels, *shape[1:])
    if tuple(output.shape) != expected:
        raise CalibrationError(
            f"{name} predicted {tuple(output.shape)}, but a plan of this model counts on {expected}: {rows} rows "
            f"({len(run.latents)} images in {rows // len(run.latents)} branches), {channels} channels and the size of "
            f"latents {shape}"
        )
    if channels < shape[0]:
        raise CalibrationError(f"{name} predicts {channels} channels, fewer than its latents' {shape[0]}")
    if not torch.isfinite(output).all():
        raise CalibrationError(
            f"{name} predicts NaN or infinite values at the first step, uncompressed: check its weights, the condition "
            "and latent_shape, or use float32 or bfloat16"
        )
