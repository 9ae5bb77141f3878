"""Whole plans, tried: sampled from the same noise and compared with what the sampler gives uncompressed.

Images differ by far in how much they move: one that ends as another image counts more in the relative L2 of all than
all that hardly moved. So trials are ranked by the geometric mean over images, which is what a mean of PSNRs ranks by,
and a difference between two plans is told from chance image by image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

import ditfastattn
from calibration.errors import CalibrationError
from ditfastattn.condition import Condition
from ditfastattn.sampling import Denoiser, sample_latents
from plans import Plan, SamplerSpec

LEAST = 1e-6  # relative L2, below which images count as equal


@dataclass(frozen=True)
class Outcome:
    """``distances``: of each image's final latents, relative L2. ``drift``: of all together."""

    distances: tuple[float, ...]
    drift: float

    @property
    def typical(self) -> float:
        """The geometric mean of the distances."""
        return math.exp(fmean(self._logarithms()))

    @property
    def finite(self) -> bool:
        """Whether it ends in images at all."""
        return math.isfinite(self.drift)

    def beats(self, other: Outcome, errors: float = 1.0) -> bool:
        """Whether these images are nearer, by more than so many standard errors of the mean difference."""
        if not self.finite or not other.finite:
            return self.finite
        gains = [b - a for a, b in zip(self._logarithms(), other._logarithms(), strict=True)]
        spread = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        return fmean(gains) > errors * spread

    def _logarithms(self) -> list[float]:
        return [math.log(max(distance, LEAST)) for distance in self.distances]


class Trials:
    """Samples plans of any number of steps on the images of one condition.

    Args:
        pipe: has ``transformer`` and ``scheduler``; neither is changed.
        condition: of B images.
        run: of the sampler, uncompressed, that all are compared with.
        indices: image i of noise (seed, indices[i]); of more than B, the condition's images in turn, B at a time.

    Raises:
        CalibrationError: the uncompressed run ends in NaN or infinite values.
    """

    def __init__(
        self,
        pipe: Any,
        condition: Condition,
        scale: float,
        run: SamplerSpec,
        seed: int,
        indices: Sequence[int],
        kernel: str = "auto",
    ) -> None:
        self._pipe, self._kernel = pipe, kernel
        self._denoiser = Denoiser(pipe.transformer, condition, scale)
        if len(indices) % len(condition):
            raise ValueError(f"{len(indices)} images are no multiple of the condition's {len(condition)}")
        self._seed, self._indices = seed, indices
        self._known: dict[str, Outcome] = {}
        self.reference = self._sample(run)
        if not torch.isfinite(self.reference).all():
            raise CalibrationError(
                "sampling ends in NaN or infinite values: check the checkpoint, or use --dtype float32 or bfloat16"
            )

    def of(self, plan: Plan) -> Outcome:
        """How far a plan ends from the reference, infinitely far if in NaN or infinite values.

        One that was tried before is not sampled again.
        """
        key = _key(plan)
        if key not in self._known:
            with ditfastattn.apply(self._pipe.transformer, plan, kernel=self._kernel):
                self._known[key] = self._compared(self._sample(plan.sampler))
        return self._known[key]

    def _sample(self, run: SamplerSpec) -> Tensor:
        scheduler, batch = self._pipe.scheduler, len(self._denoiser.condition)
        parts = [self._indices[start : start + batch] for start in range(0, len(self._indices), batch)]
        return torch.cat([sample_latents(self._denoiser, scheduler, run, self._seed, part) for part in parts])

    def _compared(self, latents: Tensor) -> Outcome:
        reference, off = self.reference.double(), latents.double() - self.reference.double()
        if not torch.isfinite(off).all():
            return Outcome((math.inf,) * len(off), math.inf)
        each = off.flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
        return Outcome(tuple(each.tolist()), float(off.norm() / reference.norm()))


def _key(plan: Plan) -> str:
    cells = {name: site.methods for name, site in plan.sites.items()}
    return repr((plan.sampler.timesteps, cells))
