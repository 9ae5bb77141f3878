"""From latents to pixels."""

from typing import Any

import torch
from torch import Tensor

PIXELS = 1024**2  # decoded at a time: one image of 1024 px, or 256 of 64 px, which one by one would leave a GPU idle


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) to images (B, H, W, 3), uint8 on the CPU, rounded, in groups that bound the memory.

    Those of videos, (B, C, T, h, w), to their frames (B, T, H, W, 3). A group's size follows from the size of the
    images alone, so that an image at the same place of a batch of the same size always gets the same pixels.
    """
    if latents.dim() == 5:
        return torch.stack([decode(vae, video.transpose(0, 1)) for video in latents])
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    size = max(1, PIXELS // (scale**2 * latents.shape[-2] * latents.shape[-1]))
    return torch.cat([_decode(vae, group) for group in latents.split(size)])


def _decode(vae: Any, latents: Tensor) -> Tensor:
    images = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample  # (B, 3, H, W) in [-1, 1]
    pixels = images.float().add(1).mul(127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu()
