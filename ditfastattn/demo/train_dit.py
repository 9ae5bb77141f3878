"""Training of the demo's transformer on latents that lie on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ditfastattn.demo.denoise import denoising, held_out_loss
from ditfastattn.demo.loop import Recipe, Run, compile_each, train
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


def predict(model: nn.Module, xt: Tensor, t: Tensor, labels: Tensor, dropped: Tensor) -> Tensor:
    """See `denoise.Predict`."""
    output: Tensor = model(xt, timestep=t, class_labels=torch.where(dropped, NULL_CLASS, labels)).sample
    return output


def train_dit(run: Run, data: Latents, recipe: Recipe, checkpoint: Path | None = None, save_every: int = 2000,
              held_out: tuple[Tensor, Tensor] | None = None, seconds: float | None = None,
              deadline: float | None = None, compile_model: bool = False) -> bool:  # fmt: skip
    """Train as `loop.train` does, on DiT's loss; `held_out` are latents (N, 4, h, w) and labels (N,)."""
    if compile_model:
        compile_each(run.model.transformer_blocks)
    losses = denoising(data.batch, predict, recipe, data.z.device)
    measure = None if held_out is None else lambda ema: held_out_loss(ema, predict, *held_out)
    return train(run, recipe, losses, checkpoint, save_every, measure, seconds=seconds, deadline=deadline)
