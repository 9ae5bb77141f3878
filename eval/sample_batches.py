"""Which images are drawn together, of which labels, and their drawing.

An image's noise and label come from (seed, index) alone. Its pixels also depend, in their last bits, on who shares its
batch: matrix products of another shape round otherwise. So a batch is always the same indices, [k B, (k + 1) B), the
last one filled up beyond n, and it is batches that are dealt to ranks and taken up again: an image always stands in the
same place of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from calibration.labels import names_of
from ditfastattn.condition import Condition
from ditfastattn.decode import decode
from ditfastattn.sampling import Denoiser, sample_latents

_LABEL, _ORDER = 1, 2  # set these random numbers apart from the noise, which is seeded with (seed, index)


class Labels:
    """The label of every image.

    Args:
        pool: the labels to choose from.
        mode: "random": each drawn by (seed, index), independent of the others; "balanced": the pool over and over, in
            an order drawn by the seed, so that no label is more than one image ahead of another wherever one stops.
    """

    def __init__(self, pool: Sequence[int], mode: str, seed: int) -> None:
        self._pool, self._mode, self._seed = list(pool), mode, seed
        self._order = np.random.default_rng([seed, _ORDER, 0]).permutation(len(self._pool))

    def __getitem__(self, index: int) -> int:
        if self._mode == "balanced":
            return self._pool[self._order[index % len(self._pool)]]
        return self._pool[int(np.random.default_rng([self._seed, index, _LABEL]).integers(len(self._pool)))]


def pool_of(pipe: Any) -> list[int]:
    """The labels that the pipeline names, or all of its classes."""
    return sorted(names_of(pipe)) or list(range(pipe.transformer.config.num_embeds_ada_norm))


class Batches:
    """``range(n)`` cut at every multiple of ``size``."""

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size = n, size

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def kept(self, number: int) -> range:
        """The images of a batch that are below n."""
        return range(number * self.size, min((number + 1) * self.size, self.n))

    def drawn(self, number: int) -> range:
        """All of a batch, those beyond n too: every batch has the same shape, which a compiled step also likes."""
        return range(number * self.size, (number + 1) * self.size)


class Artist:
    """Draws images by the pipeline as it stands, whatever plan it follows.

    Args:
        condition: of the images with these indices.
    """

    def __init__(
        self, pipe: Any, condition: Callable[[Sequence[int]], Condition], steps: int, guidance: float, seed: int
    ) -> None:
        self._pipe, self._condition = pipe, condition
        self._steps, self._guidance, self._seed = steps, guidance, seed

    def draw(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) float32 and images (B, H, W, 3) uint8, both on the CPU; of videos a T before height."""
        denoiser = Denoiser(self._pipe.transformer, self._condition(indices), self._guidance)
        scheduler = self._pipe.scheduler  # itself, not a copy: a session follows its steps
        latents = sample_latents(denoiser, scheduler, self._steps, self._seed, indices, copy=False)
        return latents.float().cpu(), decode(self._pipe.vae, latents)
