"""Installing a plan: every difference between the plan and what it is applied to is found before anything changes."""

import os
from functools import partial
from itertools import chain
from typing import Any

from torch import nn

from ditfastattn.compiled import ProgramRunner
from ditfastattn.errors import ApplyError
from ditfastattn.kernels import check_name
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.models.base import prepared
from ditfastattn.models.parts import part_obstacles
from ditfastattn.order import order_for
from ditfastattn.runner import EagerRunner
from ditfastattn.sampler_fit import sampler_differences
from ditfastattn.session import Session
from plans import Plan, PlanError, PlanMismatch, dumps, load, loads


def apply(
    target: Any,
    plan: Plan | str | os.PathLike[str],
    *,
    kernel: str = "auto",
    scheduler: Any = None,
    compile: bool = False,
    graphs: bool = False,
) -> Session:
    """Makes a pipeline or a transformer follow a plan, until the returned session is removed.

    Args:
        target: a diffusers pipeline (its ``transformer`` and ``scheduler`` are used) or a bare transformer: one of
            diffusers', the original facebookresearch/DiT, or one's own (:func:`ditfastattn.register`).
        plan: a Plan or the path of a plan file.
        kernel: "auto", or the name of a kernel in ``ditfastattn.kernels.KERNELS``.
        scheduler: for a bare transformer, the sampler of the user's own loop. With it a new run, another number of
            steps and another guidance scale are seen at once; without it only by the timesteps of the calls.
        compile: compile the blocks' pieces with torch.compile, once for all layers, steps and methods.
        graphs: capture every distinct step as a CUDA graph. Together with ``compile`` the fastest way to sample, for
            an all-FULL plan too; the first run of a shape prepares it. Without a CUDA GPU it warns and does without.

    Returns:
        A session: ``with apply(pipe, plan) as session: ...`` or ``session = apply(...); ...; session.remove()``.

    Raises:
        PlanMismatch: the plan was made for another model, sampler or guidance layout; lists every difference.
        ApplyError: the model is not supported, carries something a plan would bypass, or has a plan already.
        KernelError: no such kernel.
        PlanError: the file is no valid plan.
    """
    if not isinstance(plan, Plan):
        if not isinstance(plan, str | os.PathLike):
            raise ApplyError(f"a plan is a plans.Plan or the path of a plan file, not a {type(plan).__name__}")
        plan = load(plan)
    else:
        plan = _checked(plan)
    check_name(kernel)
    pipeline = None if isinstance(target, nn.Module) else target
    if not isinstance(target, nn.Module):
        if not hasattr(target, "transformer") or not hasattr(target, "scheduler"):
            raise ApplyError(
                f"{type(target).__name__} has no transformer and scheduler; give apply() a pipeline that has both, "
                "or the transformer itself"
            )
        if scheduler is not None:
            raise ApplyError("a pipeline brings its own scheduler; set pipeline.scheduler instead of passing one")
        scheduler = target.scheduler
    transformer = target if pipeline is None else pipeline.transformer

    adapter = adapt(transformer)
    if follows_a_plan(transformer):
        raise ApplyError("this transformer already follows a plan; remove that session first")
    runner = ProgramRunner(prepared(adapter), compile, graphs) if compile or graphs else EagerRunner(adapter)
    obstacles = adapter.obstacles() + runner.obstacles()
    obstacles += adapter.order_obstacles(order_for(plan.token_order, chain.from_iterable(plan.methods)))
    obstacles += part_obstacles(adapter, plan.model)
    if getattr(pipeline, "_all_hooks", None):
        obstacles.append("CPU offload is on: call remove_all_hooks(), apply the plan, then enable offload again")
    if any("forward" in block.module.__dict__ for block in adapter.blocks):
        obstacles.append("the forward of its blocks was already replaced by another tool; undo that first")
    _refuse(obstacles)

    differences = plan.differences(model=adapter.spec_for(plan.model))
    if scheduler is not None:
        differences += sampler_differences(scheduler, plan)
    if plan.guidance.layout not in (Layout.NONE.value, adapter.guided_layout.value):
        differences.append(
            f"guidance layout: the plan has {plan.guidance.layout}, this model {adapter.guided_layout.value}"
        )
    if differences:
        raise PlanMismatch(differences)
    _refuse(adapter.disagreements(runner.prepares))
    return Session(adapter, plan, kernel, scheduler, pipeline, runner)


def _refuse(obstacles: list[str]) -> None:
    if obstacles:
        raise ApplyError("this transformer cannot follow a plan as it is: " + "; ".join(obstacles))


def _checked(plan: Plan) -> Plan:
    """The plan as it would be read from a file: one built past the checks (``model_copy``) is refused."""
    try:
        return loads(dumps(plan), source="this plan")
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        raise ApplyError(f"this plan object is broken ({type(error).__name__}): build it with plans.Plan") from error


def follows_a_plan(transformer: nn.Module) -> bool:
    """Whether a session is installed on it."""
    forward = transformer.__dict__.get("forward")
    return isinstance(forward, partial) and isinstance(getattr(forward.func, "__self__", None), Session)
