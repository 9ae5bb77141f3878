"""Whether the batch of a model call is one that a plan was made for, and whether two calls belong to one run."""

from typing import Any

import torch
from torch import Tensor

from ditfastattn.errors import StepError
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, ModelAdapter
from plans import Plan, PlanMismatch


def timestep_value(timestep: Any) -> float:
    """The one timestep of a call, from a number or a tensor of equal values.

    Raises:
        StepError: rows at different timesteps, or none at all.
    """
    values = set(timestep.flatten().tolist()) if isinstance(timestep, Tensor) else {timestep}
    if len(values) != 1 or None in values:
        raise StepError(f"every row of a call must be at one timestep, got {sorted(values, key=str) or 'no row'}")
    return float(values.pop())


def check_batch(plan: Plan, adapter: ModelAdapter, call: Call) -> None:
    """The batch that begins a run must hold the tokens and the guidance branches that the plan was made for.

    Raises:
        PlanMismatch: it does not.
    """
    batch = call.latents.shape[0]
    height, width = call.latents.shape[-2:]
    tokens = adapter.tokens(height, width)
    if tokens != plan.model.tokens:
        raise PlanMismatch([f"tokens: the plan has {plan.model.tokens}, this run {tokens} ({height}x{width} latents)"])
    layout = Layout(plan.guidance.layout)
    if layout is Layout.NONE:
        if adapter.mixes_branches(call):
            raise PlanMismatch(["guidance layout: the plan has none, this batch holds both guidance branches"])
        return
    if not adapter.is_guided(call):
        raise PlanMismatch(
            [
                f"guidance layout: the plan has {layout.value}, this batch of {batch} does not hold a conditional and "
                "an unconditional half in that order (run with guidance_scale > 1 and both branches in one call)"
            ]
        )
    if not torch.equal(call.latents[: batch // 2], call.latents[batch // 2 :]):
        raise PlanMismatch(
            ["guidance layout: the two halves of this batch hold different latents, so they are not two branches"]
        )


def check_same_run(step: int, call: Call, first: Call) -> None:
    """A later call must continue the run that ``first`` began.

    Raises:
        StepError: another shape, dtype, device or condition.
    """
    here, there = call.latents, first.latents
    if (here.shape, here.dtype, here.device) != (there.shape, there.dtype, there.device):
        raise StepError(
            f"step {step} got latents {tuple(here.shape)} {here.dtype} on {here.device}, but the run began with "
            f"{tuple(there.shape)} {there.dtype} on {there.device}: begin a new run at step 0"
        )
    if not _same_condition(call.condition, first.condition):
        raise StepError(
            f"step {step} got another condition than the run began with: two runs are interleaved on one transformer, "
            "or the guidance branches come in separate calls; give each its own, or one batch"
        )


def _same_condition(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a, b)
