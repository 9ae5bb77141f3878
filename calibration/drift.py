"""How far the compressed sampler ends from the uncompressed one, from the same noise."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

import ditfastattn
from ditfastattn.condition import Condition
from ditfastattn.decode import decode
from ditfastattn.sampling import Denoiser, sample_latents
from plans import Plan


@dataclass(frozen=True)
class Images:
    """The end of a sampling run: latents (B, C, h, w) and decoded images (B, H, W, 3) uint8.

    Of videos latents (B, C, T, h, w) and frames (B, T, H, W, 3).
    """

    latents: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Drift:
    """Compressed against uncompressed. ``psnr`` in dB over all pixels of all images, infinite if they are equal."""

    latent_rel_l2: float
    psnr: float
    ssim: float


def sample(
    pipe: Any, plan: Plan, condition: Condition, seed: int, first_index: int, kernel: str, compressed: bool
) -> Images:
    """Images of a plan's sampler and guidance, with or without its compression.

    Args:
        first_index: image i of the batch takes its noise from (seed, first_index + i).
    """
    denoiser = Denoiser(pipe.transformer, condition, plan.guidance.scale)
    indices = range(first_index, first_index + len(condition))
    if compressed:
        with ditfastattn.apply(pipe.transformer, plan, kernel=kernel):
            latents = sample_latents(denoiser, pipe.scheduler, plan.sampler, seed, indices)
    else:
        latents = sample_latents(denoiser, pipe.scheduler, plan.sampler, seed, indices)
    return Images(latents, decode(pipe.vae, latents))


def drift(full: Images, compressed: Images) -> Drift:
    difference = (compressed.latents.double() - full.latents.double()).norm()
    error = (compressed.pixels.double() - full.pixels.double()).square().mean().item()
    flat = [images.pixels.flatten(0, -4) for images in (compressed, full)]  # (B, H, W, 3), of videos (B T, H, W, 3)
    ours, theirs = (pixels.permute(0, 3, 1, 2).float() for pixels in flat)
    similarity = structural_similarity_index_measure(ours, theirs, data_range=255.0)
    assert isinstance(similarity, Tensor)
    return Drift(
        latent_rel_l2=float(difference / full.latents.double().norm()),
        psnr=10 * math.log10(255**2 / error) if error else math.inf,
        ssim=float(similarity),
    )
