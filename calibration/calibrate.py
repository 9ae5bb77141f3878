"""Calibrating a pipeline: Algorithm 1 step after step, on the trajectory of the plan chosen so far."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

import ditfastattn
from calibration.algorithm import Decision, all_full, choose_methods
from calibration.blocks import Blocks, EagerBlocks, PieceBlocks
from calibration.errors import CalibrationError
from calibration.journal import Journal
from calibration.loss import over_ranks
from calibration.plain import PlainStep
from calibration.probe import Probe
from calibration.replay import ReplayStep
from calibration.settings import Settings
from calibration.subjects import condition_of, sampled_by
from ditfastattn.condition import Condition
from ditfastattn.execute import Context
from ditfastattn.kernels import make_kernel, settled
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.models.base import ModelAdapter, prepared
from ditfastattn.order import Ordering, order_for
from ditfastattn.pieces import compiled_pieces
from ditfastattn.ranks import ALONE, Ranks
from ditfastattn.samplers import sampler_spec
from ditfastattn.sampling import Denoiser, Trajectory
from plans import Calibration, GuidanceSpec, Method, Plan, Window
from plans.macs import method_macs


@dataclass(frozen=True)
class Result:
    """What a calibration found. ``block_runs`` counts this run only, not the steps a resumed run took over."""

    plan: Plan
    decisions: tuple[Decision, ...]
    block_runs: int
    plain_block_runs: int  # what Algorithm 1 without replay would have run
    residual_passes: int
    resumed_steps: int
    latents: Tensor  # (B, C, h, w), the end of the compressed trajectory, of all ranks' images in order


@torch.no_grad()
def calibrate(
    pipe: Any,
    settings: Settings,
    journal: Journal | None = None,
    on_step: Callable[[int, float], None] | None = None,
    ranks: Ranks = ALONE,
    condition: Condition | None = None,
) -> Result:
    """Chooses a plan for a pipeline.

    Over several ranks each has a share of the images, both guidance branches of one together; every loss is
    reduced before it is judged, so that all arrive at one plan, that of a single process but for rounding.

    Args:
        pipe: has ``transformer`` and ``scheduler``; neither is changed.
        journal: where decisions are written as they are made, and resumed from. Rank 0's counts; others give None.
        on_step: called after every step, those taken over from a resumed run included, with the number of steps in
            all and the step's attention MACs as a share of full attention.
        condition: of the settings' labels or prompts, where it was made before; None makes it, which needs the
            pipeline's text encoder if it has one.

    Raises:
        CalibrationError: a model conditioned otherwise, labels it does not know, fewer labels or prompts than ranks, or
            an output that is not finite.
        RankError: another rank has ended.
    """
    sampled_by(pipe.transformer)
    adapter = adapt(pipe.transformer)
    obstacles = adapter.obstacles()
    if obstacles:
        raise CalibrationError("this transformer cannot be calibrated as it is: " + "; ".join(obstacles))
    plan = empty_plan(adapter, pipe.scheduler, settings)
    if ranks.world > settings.images:
        one = "label" if settings.labels else "prompt"
        raise CalibrationError(
            f"{ranks.world} processes cannot share {settings.images} {one}s: start at most one process a {one}, "
            "or calibrate on more (--n-calib)"
        )
    condition = condition_of(pipe, settings) if condition is None else condition
    if len(condition) != settings.images:
        raise CalibrationError(f"the condition is of {len(condition)} images, the settings of {settings.images}")

    images = ranks.share(settings.images)
    denoiser = Denoiser(pipe.transformer, condition.of(images), settings.guidance_scale)
    run = Trajectory(denoiser, pipe.scheduler, settings.steps, settings.seed, images)
    candidates = settings.candidates()
    parameter = next(pipe.transformer.parameters())
    queries = parameter.new_empty((denoiser.rows, plan.model.tokens, plan.model.heads, plan.model.head_dim))
    # What one rank has measured, all use.
    kernel = ranks.broadcast(settled(settings.kernel, queries, plan.window) if ranks.first else "")
    context = Context(make_kernel(kernel, queries, plan.window), plan.window, Layout(plan.guidance.layout))
    ordering = Ordering(order_for(plan.token_order, candidates), plan.window, adapter.per_image)
    ordering.fit(adapter.grid(*run.latents.shape[-2:]), run.latents.device)
    step_class = ReplayStep if settings.search == "replay" else PlainStep
    done = ranks.broadcast(list(journal.decisions) if journal else [])
    loss = over_ranks(settings.loss, ranks)
    decisions: list[Decision] = []
    plain_runs = 0
    blocks: Blocks = EagerBlocks(adapter, context)
    if settings.compile:
        rows = run.latents.new_empty((denoiser.rows, *run.latents.shape[1:]))
        blocks = PieceBlocks(
            prepared(adapter), context, compiled_pieces(), adapter.read_call((rows,), denoiser.arguments)
        )
    with Probe(adapter, context, ordering, any(method.windowed for method in candidates), blocks) as probe:
        for index, timestep in enumerate(plan.sampler.timesteps):
            blocks.begin_step(timestep)

            def predict(index: int = index) -> Tensor:
                return run.predict(index)

            if index < len(done) or index == 0:
                decision = done[index] if index < len(done) else all_full(probe.layers)
                output = probe.commit(predict, decision.methods)
                plain_runs += probe.layers
            else:
                step = step_class(probe, predict)
                decision = choose_methods(step, candidates, loss, settings.threshold)
                output = step.output()
                plain_runs += probe.layers * (len(decision.trials) + 2)  # O, every O', and the chosen run
            if index >= len(done) and journal:
                journal.append(decision)
            decisions.append(decision)
            run.advance(index, output)
            if on_step:
                on_step(plan.steps, _macs_share(plan, decision))
    record = _record(settings, parameter, context.kernel.name)
    plan = plan.model_copy(update={"calibration": record}).with_methods(
        [d.methods for d in decisions], [d.losses for d in decisions]
    )
    latents = (
        torch.cat([part.to(run.latents) for part in ranks.gather(run.latents.cpu())])
        if ranks.world > 1
        else run.latents
    )
    return Result(plan, tuple(decisions), probe.block_runs, plain_runs, probe.residual_passes, len(done), latents)


def empty_plan(adapter: ModelAdapter, scheduler: Any, settings: Settings) -> Plan:
    """The all-FULL plan of these settings; calibration fills in its cells."""
    model = adapter.spec()
    trained = scheduler.config.num_train_timesteps
    if settings.steps > trained:
        raise CalibrationError(f"{settings.steps} steps are more than the {trained} timesteps the model was trained on")
    layout = adapter.guided_layout if settings.guided else Layout.NONE
    window = settings.window or Window.default(model.tokens)
    if max(window.left, window.right) > model.tokens:
        raise CalibrationError(f"the window {window} is wider than the model's {model.tokens} tokens")
    return Plan.full(
        model=model,
        sampler=sampler_spec(scheduler, settings.steps),
        guidance=GuidanceSpec(scale=float(settings.guidance_scale), layout=layout.value),
        window=window,
        token_order=settings.token_order,
    )


def _macs_share(plan: Plan, decision: Decision) -> float:
    """Attention MACs of one step in units of all-FULL."""
    macs = [
        method_macs(method, tokens=plan.model.tokens, width=plan.model.width, window=plan.window)
        for method in (Method.FULL, *decision.methods)
    ]
    return sum(macs[1:]) / (macs[0] * plan.layers)


def _record(settings: Settings, parameter: Tensor, kernel: str) -> Calibration:
    device = torch.cuda.get_device_name(parameter.device) if parameter.is_cuda else platform.machine() + " CPU"
    return Calibration(
        loss=settings.loss,
        threshold=settings.threshold,
        methods=settings.candidates(),
        search=settings.search,
        labels=settings.labels,
        prompts=settings.prompts,
        negative_prompt=settings.negative_prompt if settings.prompts else None,
        seed=settings.seed,
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=device,
        kernel=kernel,
        compiled=settings.compile,
        versions=package_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
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
