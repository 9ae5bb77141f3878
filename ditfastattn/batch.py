"""Whether the batch of a model call is one that a plan was made for, and whether two calls belong to one run."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ditfastattn.clock import TOLERANCE
from ditfastattn.errors import StepError
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.watch import Watch
from plans import Plan, PlanMismatch, SiteName


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
        StepError: its guidance branches hold NaN, and so cannot be compared.
    """
    batch = call.latents.shape[0]
    height, width = call.latents.shape[-2:]
    tokens, temporal = adapter.tokens(height, width), plan.model.temporal
    differences = []
    if tokens != plan.model.tokens:
        differences.append(f"tokens: the plan has {plan.model.tokens}, this run {tokens} ({height}x{width} latents)")
    if temporal is not None and call.latents.shape[2] != temporal.frames:
        differences.append(f"frames: the plan has {temporal.frames}, this run {call.latents.shape[2]}")
    if differences:
        raise PlanMismatch(differences)
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
    halves = call.latents[: batch // 2], call.latents[batch // 2 :]
    if not torch.equal(*halves):
        if torch.isnan(call.latents).any():  # which equals nothing
            raise StepError("the latents that begin this run hold NaN: check what made them")
        raise PlanMismatch(
            ["guidance layout: the two halves of this batch hold different latents, so they are not two branches"]
        )


def check_same_shape(step: int, call: Call, first: Call) -> None:
    """A later call must be of the shape, dtype and device that ``first`` began its run with.

    Raises:
        StepError: it is not.
    """
    here, there = call.latents, first.latents
    if (here.shape, here.dtype, here.device) != (there.shape, there.dtype, there.device):
        raise StepError(
            f"step {step} got latents {tuple(here.shape)} {here.dtype} on {here.device}, but the run began with "
            f"{tuple(there.shape)} {there.dtype} on {there.device}: begin a new run at step 0"
        )


class ConditionCheck:
    """Every call of a run must bring the condition that the first one brought: labels or prompts, masks and sizes."""

    def __init__(self, first: Call) -> None:
        self._given = [(tensor, _version(tensor)) for tensor in _condition_of(first)]
        # Callers may reuse their buffers.
        self._values = [None if tensor is None else tensor.clone() for tensor in _condition_of(first)]

    def check(self, step: int, call: Call, watch: Watch) -> None:
        """Raises StepError, now or when ``watch`` learns it, if the condition of ``call`` is another one."""
        now = _condition_of(call)
        if len(now) != len(self._given):
            _judge_condition(step, [1.0])
        for tensor, values, (given, version) in zip(now, self._values, self._given, strict=True):
            if tensor is given and _version(tensor) == version is not None:
                continue
            if tensor is None or values is None or tensor.shape != values.shape:
                if tensor is not values:
                    _judge_condition(step, [1.0])
                continue
            watch.post((tensor != values).any().double()[None], partial(_judge_condition, step))


def _condition_of(call: Call) -> list[Tensor | None]:
    """What must stay the same through a run."""
    return [call.condition, call.mask, *(call.sizes or {}).values()]


def _version(tensor: Tensor | None) -> int | None:
    """Counts changes in place; None where nothing counts them."""
    return None if tensor is None or tensor.is_inference() else tensor._version


def _judge_condition(step: int, numbers: list[float]) -> None:
    if numbers[0]:
        raise StepError(
            f"step {step} got another condition than the run began with: two runs are interleaved on one transformer, "
            "or the guidance branches come in separate calls; give each its own, or one batch"
        )


def like_queries(plan: Plan, site: SiteName, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty (rows, N, H, D) tensor of the shape, dtype and device of a site's queries, for a kernel to judge."""
    at = plan.model.shape(site)
    shape = (latents.shape[0] * at.rows, at.tokens, plan.model.heads, plan.model.head_dim)
    return torch.empty(shape, dtype=dtype, device=latents.device)


def on_gpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


def judge_timestep(step: int, planned: float, timesteps: list[float]) -> None:
    """Raises StepError if the rows of the call that was taken for ``step`` were at another timestep."""
    if not all(abs(timestep - planned) <= TOLERANCE for timestep in timesteps):
        raise StepError(
            f"the call after {step} steps of the sampler was not at step {step} of the plan (timestep {planned:g}): a "
            "plan's steps must be run in order, all rows at one timestep, none left out"
        )
