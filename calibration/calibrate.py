"""Calibrating a pipeline: what a search needs to begin, and the record of what it found."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

import ditfastattn
from calibration.algorithm import Decision
from calibration.errors import CalibrationError
from calibration.journal import Journal
from calibration.loss import DRIFT
from calibration.sensitivity import Sensitivity
from calibration.settings import Settings
from calibration.subjects import condition_of, sampled_by
from calibration.target import with_sampler
from calibration.trace import Searched
from calibration.work import Share, Watch, Work
from ditfastattn.condition import Condition, FromPrompts
from ditfastattn.errors import pydantic_reason
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.models.base import ModelAdapter
from ditfastattn.order import order_for
from ditfastattn.ranks import ALONE, Ranks
from ditfastattn.samplers import inference_steps, sampler_spec
from plans import Budget, Calibration, GuidanceSpec, Plan, SamplerSpec


@dataclass(frozen=True)
class Result:
    """What a calibration found. ``block_runs`` counts this run only, not the steps a resumed run took over; of all
    searches, where a budget took several."""

    plan: Plan
    decisions: tuple[Decision, ...]
    block_runs: int
    plain_block_runs: int  # what Algorithm 1 without replay would have run
    residual_passes: int
    resumed_steps: int
    latents: Tensor  # (B, C, h, w), the end of the compressed trajectory, of all ranks' images in order
    sensitivities: tuple[Sensitivity, ...] = ()  # of the steps, for the loss drift
    measuring_runs: int = 0  # of blocks, for the sensitivities


@torch.no_grad()
def calibrate(
    target: Any,
    settings: Settings,
    journal: Journal | None = None,
    on_step: Callable[[int, float], None] | None = None,
    ranks: Ranks = ALONE,
    condition: Condition | None = None,
    watch: Watch | None = None,
    sensitivities: Sequence[Sensitivity] = (),
    scheduler: Any = None,
) -> Result:
    """Chooses a plan for a pipeline or a transformer.

    Over several ranks each has a share of the images, both guidance branches of one together; every loss is
    reduced before it is judged, so that all arrive at one plan, that of a single process but for rounding.

    Args:
        target: a pipeline (its ``transformer`` and ``scheduler`` are used), or a bare transformer, one's own
            (:func:`ditfastattn.register`) among them. Nothing of it is changed.
        journal: where decisions are written as they are made, and resumed from. Rank 0's counts; others give None.
        on_step: called after every step, those taken over from a resumed run included, with the number of steps in
            all and the step's attention MACs as a share of full attention.
        condition: of the settings' labels or prompts, where it was made before; None makes it, which needs the
            pipeline's text encoder if it has one. Settings that name neither need it: of a transformer of one's own
            nobody else knows what it is called with.
        watch: told of all else that goes on, in place of ``on_step``.
        sensitivities: of a calibration with other thresholds or budgets, but all else alike; else they are measured.
        scheduler: of a bare transformer, any of diffusers whose timesteps a plan can hold; copied.

    Raises:
        CalibrationError: neither threshold nor budget, a model conditioned otherwise, labels it does not know, fewer
            images than ranks, no condition or sampler where none is known, or an output of another shape or that is not
            finite.
        StepError, PlanMismatch: a model call that no plan could follow.
        RankError: another rank has ended.
    """
    threshold, budget = settings.threshold, None
    if threshold is None and settings.budget is None:
        raise CalibrationError("calibration needs a threshold, or a budget for the drift: the settings have neither")
    pipe = with_sampler(target, scheduler)
    if condition is None:
        sampled_by(pipe.transformer)
    adapter = adapt(pipe.transformer)
    obstacles = adapter.obstacles() + adapter.order_obstacles(order_for(settings.token_order, settings.candidates()))
    if obstacles:
        raise CalibrationError("this transformer cannot be calibrated as it is: " + "; ".join(obstacles))
    if settings.search == "fast" and ranks.world > 1:
        raise CalibrationError("the search fast is for one process: start it without torchrun, or leave --search out")
    count = settings.images if condition is None else len(condition)
    if 0 < count < ranks.world:
        one = "label" if settings.labels else "prompt" if settings.prompts else "image"
        raise CalibrationError(
            f"{ranks.world} processes cannot share {count} {one}s: start at most one process a {one}, "
            "or calibrate on more (--n-calib)"
        )
    condition = condition_of(pipe, settings) if condition is None else condition
    if settings.images not in (0, count):
        raise CalibrationError(f"the condition is of {count} images, the settings of {settings.images}")
    plan = empty_plan(adapter, pipe.scheduler, settings, condition.latent_shape)

    images = Share.of(count, ranks)
    share = condition.of(images.mine)
    work = Work(pipe, adapter, plan, settings, share, images, journal, ranks, watch or Watch(on_step))
    if settings.loss == DRIFT:
        work.measure(sensitivities)
    if threshold is not None:
        found = work.search(threshold, work.done.searches[0] if work.done.searches else Searched())
    else:
        assert settings.budget is not None, "settings have one or the other"
        found, threshold, budget = work.within(settings.budget)
    weights = tuple(sensitivity.value for sensitivity in work.sensitivities)
    record = _record(settings, count, adapter, threshold, weights, budget, found.kernel)
    run = work.run
    latents = (
        torch.cat([part.to(run.latents) for part in ranks.gather(run.latents.cpu())])
        if ranks.world > 1
        else run.latents
    )
    return Result(
        plan=found.plan.model_copy(update={"calibration": record}),
        decisions=found.decisions,
        block_runs=found.block_runs,
        plain_block_runs=found.plain_block_runs,
        residual_passes=found.residual_passes,
        resumed_steps=found.resumed_steps,
        latents=latents,
        sensitivities=tuple(work.sensitivities),
        measuring_runs=work.measuring_runs,
    )


def alone(pipe: Any, settings: Settings, condition: Condition | None = None, watch: Watch | None = None) -> Work:
    """What one process measures with; arguments as of :func:`calibrate`, which searches."""
    condition = condition_of(pipe, settings) if condition is None else condition
    adapter = adapt(pipe.transformer)
    plan = empty_plan(adapter, pipe.scheduler, settings, condition.latent_shape)
    images = Share.of(len(condition), ALONE)
    return Work(pipe, adapter, plan, settings, condition, images, None, ALONE, watch or Watch())


def empty_plan(adapter: ModelAdapter, scheduler: Any, settings: Settings, latent_shape: Sequence[int]) -> Plan:
    """The all-FULL plan of these settings; calibration fills in its cells."""
    model = adapter.spec_at(latent_shape)
    trained = getattr(scheduler.config, "num_train_timesteps", None)
    if trained is None:
        raise CalibrationError(f"{type(scheduler).__name__} has no num_train_timesteps: choose a sampler of diffusion")
    if settings.steps > trained:
        raise CalibrationError(f"{settings.steps} steps are more than the {trained} timesteps the model was trained on")
    layout = adapter.guided_layout if settings.guided else Layout.NONE
    if settings.guided and layout is Layout.NONE:
        raise CalibrationError(
            f'{model.class_name} was registered with guided="none": calibrate it at guidance_scale=1, or register the '
            "order of its branches"
        )
    if settings.temporal_window is not None and model.temporal is None:
        raise CalibrationError(f"{model.class_name} has no attention between frames: leave --temporal-window out")
    frames = 1 if model.temporal is None else model.temporal.frames
    for window, size, of in ((settings.window, model.tokens, "tokens"), (settings.temporal_window, frames, "frames")):
        if window is not None and max(window.left, window.right) > size:
            raise CalibrationError(f"the window {window} is wider than the model's {size} {of}")
    return Plan.full(
        model=model,
        sampler=_sampler(scheduler, settings.steps),
        guidance=GuidanceSpec(scale=float(settings.guidance_scale), layout=layout.value),
        window=settings.window,
        temporal_window=settings.temporal_window,
        token_order=settings.token_order,
    )


def _sampler(scheduler: Any, steps: int) -> SamplerSpec:
    """What a plan records of it. Raises CalibrationError if its steps cannot be found again from that."""
    name = type(scheduler).__name__
    try:
        found = sampler_spec(scheduler, steps)
        again = sampler_spec(scheduler, inference_steps(scheduler, len(found.timesteps)))
    except Exception as error:  # whatever a sampler raises
        raise CalibrationError(f"{name} cannot make {steps} steps of a plan ({pydantic_reason(error)})") from error
    if again != found:
        raise CalibrationError(
            f"{name} calls the model {len(found.timesteps)} times in {steps} steps, which a plan cannot find again: "
            "choose another sampler, or settings of it with one call a step"
        )
    return found


def _record(
    settings: Settings,
    images: int,
    adapter: ModelAdapter,
    threshold: float,
    sensitivity: tuple[float, ...],
    budget: Budget | None,
    kernel: str,
) -> Calibration:
    parameter = next(adapter.model.parameters())
    negative, video = None, None
    if isinstance(adapter, FromPrompts):
        negative = settings.negative_prompt if adapter.takes_negative else None
        video = settings.video or adapter.usual_video
    device = torch.cuda.get_device_name(parameter.device) if parameter.is_cuda else platform.machine() + " CPU"
    return Calibration(
        loss=settings.loss,
        threshold=threshold,
        methods=settings.candidates(),
        search=settings.search,
        labels=settings.labels,
        prompts=settings.prompts,
        conditions=0 if settings.images else images,
        negative_prompt=negative,
        video=video,
        seed=settings.seed,
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=device,
        kernel=kernel,
        compiled=settings.compile,
        versions=package_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sensitivity=sensitivity,
        budget=budget,
    )


def package_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"ditfastattn": ditfastattn.__version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
