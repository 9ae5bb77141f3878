"""From latents to pixels."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) to images (B, H, W, 3), uint8 on the CPU, rounded, one at a time to bound memory.

    Those of videos, (B, C, T, h, w), to their frames (B, T, H, W, 3).
    """
    if latents.dim() == 5:
        return torch.stack([decode(vae, video.transpose(0, 1)) for video in latents])
    scaling = vae.config.scaling_factor
    images = [vae.decode(one[None].to(vae.dtype) / scaling).sample[0] for one in latents]  # (3, H, W) in [-1, 1]
    pixels = torch.stack(images).float().add(1).mul(127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu()
