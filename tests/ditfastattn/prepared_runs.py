"""Runs that prepared ones are compared with, and one in which the CPU must not wait for the GPU."""

from typing import Any

import torch
from diffusers import DiTPipeline
from small_models import sample
from torch import Tensor

from ditfastattn import apply
from plans import Plan


def close(ours: Tensor, expected: Tensor) -> bool:
    return bool((ours - expected).norm() < 1e-5 * expected.norm())


def run_eagerly(pipe: DiTPipeline, plan: Plan, **kwargs: Any) -> Tensor:
    with apply(pipe, plan):
        return sample(pipe, steps=plan.steps, **kwargs)


def steps_without_waiting(pipe: DiTPipeline, plan: Plan) -> int:
    """How many steps the second run of captured graphs has. A wait after its first step is an error of torch."""
    with apply(pipe, plan, graphs=True):
        sample(pipe, steps=plan.steps)
        forward, calls = pipe.transformer.forward, []

        def strict(*args: Any, **kwargs: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error" if calls else "default")
            calls.append(1)
            try:
                return forward(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        pipe.transformer.__dict__["forward"] = strict
        sample(pipe, steps=plan.steps)
        pipe.transformer.__dict__["forward"] = forward
    return len(calls)
