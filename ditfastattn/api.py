"""Installing a plan: every difference between the plan and what it is applied to is found before anything changes."""

import os
from typing import Any

from torch import nn

from ditfastattn.errors import ApplyError
from ditfastattn.kernels import check_name
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.samplers import inference_steps, sampler_spec
from ditfastattn.session import Session
from plans import Plan, PlanMismatch, load


def apply(target: Any, plan: Plan | str | os.PathLike[str], *, kernel: str = "auto", scheduler: Any = None) -> Session:
    """Makes a pipeline or a transformer follow a plan, until the returned session is removed.

    Args:
        target: a diffusers pipeline (its ``transformer`` and ``scheduler`` are used) or a bare transformer.
        plan: a Plan or the path of a plan file.
        kernel: "auto", or the name of a kernel in ``ditfastattn.kernels.KERNELS``.
        scheduler: for a bare transformer, the sampler of the user's own loop. With it a new run, another number of
            steps and another guidance scale are seen at once; without it only by the timesteps of the calls.

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
    check_name(kernel)
    pipeline = None if isinstance(target, nn.Module) else target
    if pipeline is not None:
        if not hasattr(pipeline, "transformer") or not hasattr(pipeline, "scheduler"):
            raise ApplyError(
                f"{type(target).__name__} has no transformer and scheduler; give apply() a pipeline that has both, "
                "or the transformer itself"
            )
        if scheduler is not None:
            raise ApplyError("a pipeline brings its own scheduler; set pipeline.scheduler instead of passing one")
        scheduler = pipeline.scheduler
    transformer = target if pipeline is None else pipeline.transformer

    adapter = adapt(transformer)
    if getattr(transformer.__dict__.get("forward"), "func", None) is not None and isinstance(
        getattr(transformer.__dict__["forward"].func, "__self__", None), Session
    ):
        raise ApplyError("this transformer already follows a plan; remove that session first")
    obstacles = adapter.obstacles()
    if obstacles:
        raise ApplyError("this transformer cannot follow a plan as it is: " + "; ".join(obstacles))

    differences = plan.differences(model=adapter.spec())
    if scheduler is not None:
        actual = sampler_spec(scheduler, inference_steps(scheduler, plan.steps), known_settings=plan.sampler.settings)
        differences += plan.differences(sampler=actual)
    if plan.guidance.layout not in (Layout.NONE.value, adapter.guided_layout.value):
        differences.append(
            f"guidance layout: the plan has {plan.guidance.layout}, this model {adapter.guided_layout.value}"
        )
    if differences:
        raise PlanMismatch(differences)
    return Session(adapter, plan, kernel, scheduler, pipeline)
