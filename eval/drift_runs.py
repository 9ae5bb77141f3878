"""Final latents of many images, with a plan or without, and how far two such are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import ditfastattn
from calibration.loss import relative_l2
from ditfastattn.decode import decode
from ditfastattn.ranks import ALONE
from ditfastattn.samplers import inference_steps
from ditfastattn.sampling import Denoiser, label_condition, sample_latents
from plans import Plan, SamplerSpec


@dataclass(frozen=True)
class Sampled:
    """Latents (N, C, h, w) and what decodes them, so many at once."""

    latents: Tensor
    vae: Any
    batch: int

    def distance(self, other: Sampled) -> float:
        """Relative L2 of the other's latents from these, over all images together."""
        return relative_l2(self.latents, other.latents, ALONE)

    @cached_property
    def pixels(self) -> Tensor:
        """(N, H, W, 3) uint8, on the CPU."""
        return torch.cat([decode(self.vae, part).cpu() for part in self.latents.split(self.batch)])


def final_latents(
    pipe: Any, plan: Plan | None, labels: Sequence[int], seed: int, scale: float, steps: int, batch: int
) -> Sampled:
    """One image a label, image i of noise (seed, i), by the pipeline's sampler.

    Args:
        plan: None samples uncompressed. Its guidance scale need not be ``scale``: a bare transformer is not told of it.
        steps: model calls of a run without a plan.
    """

    def followed() -> AbstractContextManager[Any]:
        return nullcontext() if plan is None else ditfastattn.apply(pipe.transformer, plan)

    run = inference_steps(pipe.scheduler, steps) if plan is None else plan.sampler
    return latents_by(pipe.transformer, pipe, followed, labels, seed, scale, run, batch)


def latents_by(
    transformer: Any, pipe: Any, each_run: Callable[[], AbstractContextManager[Any]], labels: Sequence[int], seed: int,
    scale: float, run: int | SamplerSpec, batch: int,
) -> Sampled:  # fmt: skip
    """As `final_latents`, by a transformer in the place of the pipeline's, a batch within ``each_run()``; ``run`` is a
    number of inference steps, or a plan's ``sampler``."""
    parts = []
    for start in range(0, len(labels), batch):
        indices = range(start, min(start + batch, len(labels)))
        condition = label_condition(pipe.transformer, [labels[index] for index in indices])
        with each_run():
            denoiser = Denoiser(transformer, condition, scale)
            parts.append(sample_latents(denoiser, pipe.scheduler, run, seed, indices))
    return Sampled(torch.cat(parts), pipe.vae, batch)


def mean_psnr(reference: Sampled, other: Sampled) -> float | None:
    """dB, the mean over images of each one's PSNR; None if all are equal.

    One that is equal counts as one whose squared errors sum to 1.
    """
    off = (other.pixels.double() - reference.pixels.double()).flatten(1).square()  # (N, H W 3)
    if not off.any():
        return None
    error = off.mean(1).clamp_min(1 / off.shape[1])
    return round(float((10 * torch.log10(255**2 / error)).mean()), 2)


def psnr(reference: Sampled, other: Sampled) -> float | None:
    """dB over all pixels of all images; None if they are equal."""
    error = (other.pixels.double() - reference.pixels.double()).square().mean().item()
    return round(10 * math.log10(255**2 / error), 2) if error else None
