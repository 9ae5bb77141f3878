"""How long a plan's run takes, by the clock."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

import ditfastattn
from ditfastattn.condition import Condition
from ditfastattn.sampling import Denoiser, sample_latents
from plans import Plan

RUNS = 3


@torch.no_grad()
def run_ms(pipe: Any, plan: Plan, condition: Condition, kernel: str, compile: bool, runs: int = RUNS) -> float:
    """Milliseconds of sampling without text encoder and VAE, the median of some runs after one that prepares.

    Args:
        condition: of the images that are sampled at once.
        compile: prepared, compiled, and on a GPU captured steps; else eager.
    """
    device = next(pipe.transformer.parameters()).device
    on_gpu = device.type == "cuda"
    denoiser = Denoiser(pipe.transformer, condition, plan.guidance.scale)
    taken = []
    with ditfastattn.apply(pipe, plan, kernel=kernel, compile=compile, graphs=compile and on_gpu):
        for _ in range(runs + 1):
            if on_gpu:
                torch.cuda.synchronize(device)
            begin = time.perf_counter()
            sample_latents(denoiser, pipe.scheduler, plan.sampler, 0, range(len(condition)), copy=False)
            if on_gpu:
                torch.cuda.synchronize(device)
            taken.append(1000 * (time.perf_counter() - begin))
    return statistics.median(taken[1:])
