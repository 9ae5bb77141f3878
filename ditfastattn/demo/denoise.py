"""What the demo's transformers are trained and measured on: the noise that was added, and its variance, as DiT's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ditfastattn.demo.diffusion import STEPS, Diffusion
from ditfastattn.demo.loop import Losses, Recipe, mixed_precision

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws B latents (B, C, ...) float32 and the numbers of their conditions, (B,) int64."""

Predict = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A model's output (B, 2C, ...) of x_t (B, C, ...) at times (B,) for conditions (B,), without those that are dropped,
(B,) bool."""


def denoising(draw: Draw, predict: Predict, recipe: Recipe, device: torch.device) -> Losses:
    """DiT's loss of batches that ``draw`` gives, a share of their conditions dropped."""
    diffusion = Diffusion(device)

    def losses(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x0, conditions = draw(recipe.batch, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        t = torch.randint(STEPS, (recipe.batch,), generator=generator, device=device)
        dropped = torch.rand(recipe.batch, generator=generator, device=device) < recipe.drop_label
        with mixed_precision(device):
            output = predict(model, diffusion.noisy(x0, noise, t), t, conditions, dropped)
        return diffusion.loss(output.float(), x0, noise, t)

    return losses


@torch.no_grad()
def held_out_loss(model: nn.Module, predict: Predict, z: Tensor, conditions: Tensor, seed: int = 1) -> float:
    """L_simple on latents (N, C, ...) for conditions (N,), the same noise and evenly spread times at each call."""
    z, device = z.float(), z.device
    generator = torch.Generator(device).manual_seed(seed)
    noise = torch.randn(z.shape, generator=generator, device=device)
    t = torch.arange(len(z), device=device) * STEPS // len(z)
    xt = Diffusion(device).noisy(z, noise, t)
    dropped = torch.zeros(len(z), dtype=torch.bool, device=device)
    total = 0.0
    for part in torch.arange(len(z), device=device).split(256):
        with mixed_precision(device):
            output = predict(model, xt[part], t[part], conditions[part], dropped[part])
        total += ((output[:, : z.shape[1]].float() - noise[part]) ** 2).flatten(1).mean(1).sum().item()
    return total / len(z)
