"""Training of the demo's transformer on latents that lie on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor, nn

from ditfastattn.demo.diffusion import STEPS, Diffusion
from ditfastattn.demo.loop import Recipe, Run, mixed_precision, train
from ditfastattn.demo.model import NULL_CLASS
from ditfastattn.demo.vae import encode


@dataclass(frozen=True)
class Latents:
    """The training set: z is (N, V, 2, 4, h, w), V drawings of each icon, plain and mirrored; the rest are
    (N,)."""

    z: Tensor
    labels: Tensor
    weights: Tensor
    mirror: Tensor  # bool: whether the mirrored half may be used

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw (size, 4, h, w) float32 latents and their (size,) labels."""
        device = self.z.device
        i = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        v = torch.randint(self.z.shape[1], (size,), generator=generator, device=device)
        f = torch.randint(2, (size,), generator=generator, device=device) * self.mirror[i]
        return self.z[i, v, f].float(), self.labels[i]


@torch.no_grad()
def encode_training(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents (N, V, 2, 4, h, w) of drawings (N, V, H, W, 3) uint8; float16 on a GPU, where they take half
    the room."""
    dtype = torch.float16 if vae.device.type == "cuda" else torch.float32
    n, v = images.shape[:2]
    both = []
    for flat in (images.flatten(0, 1), images.flatten(0, 1).flip(2)):
        both.append(torch.cat([z.to(dtype) for z in encode(vae, flat)]).unflatten(0, (n, v)))
    return torch.stack(both, dim=2)


@torch.no_grad()
def held_out_loss(model: DiTTransformer2DModel, z: Tensor, labels: Tensor, seed: int = 1) -> float:
    """L_simple on held-out latents (N, 4, h, w), the same noise and evenly spread times at each call."""
    generator = torch.Generator(z.device).manual_seed(seed)
    noise = torch.randn(z.shape, generator=generator, device=z.device)
    t = torch.arange(len(z), device=z.device) * STEPS // len(z)
    xt = Diffusion(z.device).noisy(z, noise, t)
    total = 0.0
    with mixed_precision(z.device):
        for part in torch.arange(len(z), device=z.device).split(256):
            eps = model(xt[part], timestep=t[part], class_labels=labels[part]).sample[:, :4].float()
            total += ((eps - noise[part]) ** 2).flatten(1).mean(1).sum().item()
    return total / len(z)


def train_dit(run: Run, data: Latents, recipe: Recipe, checkpoint: Path | None = None, save_every: int = 2000,
              held_out: tuple[Tensor, Tensor] | None = None, seconds: float | None = None,
              deadline: float | None = None, compile_model: bool = False) -> bool:  # fmt: skip
    """Train as `loop.train` does, on DiT's loss; `held_out` are latents (N, 4, h, w) and labels (N,)."""
    device = data.z.device
    diffusion = Diffusion(device)
    if compile_model:
        for block in run.model.transformer_blocks:
            block.compile()  # one block at a time: the blocks are alike, so one compilation serves all

    def losses(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x0, labels = data.batch(recipe.batch, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        t = torch.randint(STEPS, (recipe.batch,), generator=generator, device=device)
        drop = torch.rand(recipe.batch, generator=generator, device=device) < recipe.drop_label
        labels = torch.where(drop, NULL_CLASS, labels)
        with mixed_precision(device):
            output = model(diffusion.noisy(x0, noise, t), timestep=t, class_labels=labels).sample
        return diffusion.loss(output.float(), x0, noise, t)

    measure = None if held_out is None else lambda ema: held_out_loss(ema, *held_out)

    return train(run, recipe, losses, checkpoint, save_every, measure, seconds=seconds, deadline=deadline)
