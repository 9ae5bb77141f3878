"""What made a run's images: everything that changes a pixel, as ``run.json`` has it and as another run must have it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calibration.calibrate import package_versions
from ditfastattn.condition import FromPrompts
from ditfastattn.errors import DitFastAttnError
from ditfastattn.fingerprint import fingerprint
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.samplers import SAMPLERS, inference_steps, sampler_spec
from eval.record import device_name
from eval.sample_videos import ENDINGS, check_backend
from plans import GuidanceSpec, Plan, PlanMismatch, dumps


class SampleError(DitFastAttnError):
    """Images cannot be sampled as asked, or not into this folder."""


@dataclass(frozen=True)
class Schedule:
    """Sampler by name, its steps and the guidance scale: the user's, else the plan's, else the defaults."""

    sampler: str
    steps: int
    guidance: float


def sampler_name(sampler: str | None, plan: Plan | None) -> str | None:
    """The one that was given, else the plan's. Raises SampleError if we lack the plan's."""
    if sampler is None and plan is not None:
        classes = {cls.__name__: name for name, (cls, _) in SAMPLERS.items()}
        sampler = classes.get(plan.sampler.class_name)
        if sampler is None:
            raise SampleError(
                f"the plan was made for {plan.sampler.class_name}, which is none of {', '.join(SAMPLERS)}"
            )
    return sampler


def schedule(steps: int | None, guidance: float | None, plan: Plan | None, usual: Schedule) -> Schedule:
    """What was given, filled up.

    Args:
        usual: the sampler, and what the model is sampled at with it unless somebody or the plan says otherwise.

    Raises:
        SampleError: numbers that make no run.
    """
    if steps is None:
        steps = usual.steps if plan is None else inference_steps(SAMPLERS[usual.sampler][0], plan.steps)
    if guidance is None:
        guidance = usual.guidance if plan is None else plan.guidance.scale
    if steps < 1:
        raise SampleError(f"--steps must be at least 1, got {steps}")
    if not 1 <= guidance < float("inf"):
        raise SampleError(f"--guidance must be 1 (none) or more, got {guidance}")
    return Schedule(usual.sampler, steps, guidance)


def file_format(given: str | None, video: bool) -> str:
    """How the samples are written: PNG, videos as GIF, unless somebody says otherwise.

    Raises:
        SampleError: a format of images for videos, or the other way round.
        DitFastAttnError: nothing that writes it is installed.
    """
    fitting = (*ENDINGS, "npz") if video else ("png", "npz")
    if given is not None and given not in fitting:
        what = "videos" if video else "images"
        raise SampleError(f"--format {given} does not go with {what}: choose one of {', '.join(fitting)}")
    check_backend(given or fitting[0])
    return given or fitting[0]


def check_steps(pipe: Any, steps: int) -> None:
    """Raises SampleError for more steps than the model was trained on."""
    trained = pipe.scheduler.config.num_train_timesteps
    if steps > trained:
        raise SampleError(f"{steps} steps are more than the {trained} timesteps the model was trained on")


def full_plan(pipe: Any, wanted: Schedule, latent_shape: Sequence[int]) -> Plan:
    """The plan that compresses nothing, for latents of that shape."""
    adapter = adapt(pipe.transformer)
    layout = adapter.guided_layout if wanted.guidance != 1 else Layout.NONE
    return Plan.full(
        model=adapter.spec_at(latent_shape),
        sampler=sampler_spec(pipe.scheduler, wanted.steps),
        guidance=GuidanceSpec(scale=float(wanted.guidance), layout=layout.value),
    )


def check_plan(pipe: Any, plan: Plan, wanted: Schedule, latent_shape: Sequence[int]) -> None:
    """Raises PlanMismatch, with every difference between the plan and the run, before a file is written."""
    actual = full_plan(pipe, wanted, latent_shape)
    model = adapt(pipe.transformer).with_parts_of(plan.model, actual.model)
    own = plan.sampler.own_timesteps and plan.steps == wanted.steps
    run = plan.sampler if own else wanted.steps
    sampler = sampler_spec(pipe.scheduler, run, known_settings=plan.sampler.settings)
    differences = plan.differences(model=model, sampler=sampler, guidance=actual.guidance)
    if differences:
        raise PlanMismatch(differences)


def pixel_size(pipe: Any, latent_shape: Sequence[int]) -> tuple[int, ...]:
    """(height, width) of images, (frames, height, width) of videos."""
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    *frames, height, width = latent_shape[1:]
    return (*frames, height * factor, width * factor)


def digest_of(plan: Plan) -> str:
    """The digest that its file carries."""
    return str(json.loads(dumps(plan))["digest"])


def _encoders(pipe: Any) -> list[nn.Module]:
    adapter = adapt(pipe.transformer)
    parts = [getattr(pipe, name) for name in adapter.encoders] if isinstance(adapter, FromPrompts) else []
    return [part for part in parts if isinstance(part, nn.Module)]


def describe(
    pipe: Any, plan: Plan | None, wanted: Schedule, latent_shape: Sequence[int], device: str, **given: Any
) -> dict[str, Any]:
    """What two commands of one folder must share, as ``run.json`` has it; ``given`` is the rest of it."""
    return {
        **given,
        "sampler": wanted.sampler,
        "steps": wanted.steps,
        "guidance": float(wanted.guidance),
        "plan": digest_of(plan) if plan else None,
        "weights": fingerprint(pipe.transformer, pipe.vae, *_encoders(pipe)),
        "size": list(pixel_size(pipe, latent_shape)),
        "device": device_name(device),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "versions": package_versions(),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each setting that is not the same."""
    return [
        f"{key}: {_short(before.get(key))}, now {_short(now.get(key))}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 120 else text[:117] + "..."
