"""Training of the demo's transformer on latents that lie on the device."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor
from tqdm import tqdm

from ditfastattn.demo.diffusion import STEPS, Diffusion
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


@dataclass
class Recipe:
    """The numbers of a run. `iterations` may change between a run and its continuation: the rate stays
    level until the last `decay` share of it, so only the end depends on the total. A run with a deadline is as
    long as the time it has, and its rate falls in the last `decay` share of that."""

    iterations: int = 20_000
    batch: int = 512
    lr: float = 1e-3
    warmup: int = 500
    decay: float = 0.3
    weight_decay: float = 0.0
    ema: float = 0.9995
    drop_label: float = 0.1
    seed: int = 0

    def rate(self, i: int, time_left: float = 1.0) -> float:
        """Learning rate of iteration i: warm-up, level, then a straight line to zero, by iterations or by
        `time_left`, a share of the run, whichever is further on."""
        tail = max(1.0, self.decay * self.iterations)
        end = min((self.iterations - i) / tail, time_left / self.decay)
        return self.lr * min(1.0, (i + 1) / max(1, self.warmup), max(0.0, end))


@dataclass
class Run:
    """What a checkpoint holds: the model, its moving average, the optimiser, and the losses so far."""

    model: DiTTransformer2DModel
    ema: DiTTransformer2DModel
    optimiser: torch.optim.Optimizer
    iteration: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, model: DiTTransformer2DModel, recipe: Recipe) -> Run:
        fused = next(model.parameters()).device.type == "cuda"
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=fused
        )
        return cls(model, copy.deepcopy(model).requires_grad_(False), optimiser)

    def save(self, path: Path) -> None:
        """Write beside `path` and rename, so that a run cut short leaves the last whole checkpoint."""
        state = {name: getattr(self, name).state_dict() for name in ("model", "ema", "optimiser")}
        aside = path.with_suffix(".partial")
        torch.save({**state, "iteration": self.iteration, "curve": self.curve}, aside)
        os.replace(aside, path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=next(self.model.parameters()).device, weights_only=True)
        for name in ("model", "ema", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.iteration, self.curve = state["iteration"], state["curve"]


@torch.no_grad()
def held_out_loss(model: DiTTransformer2DModel, z: Tensor, labels: Tensor, seed: int = 1) -> float:
    """L_simple on held-out latents (N, 4, h, w), the same noise and evenly spread times at each call."""
    generator = torch.Generator(z.device).manual_seed(seed)
    noise = torch.randn(z.shape, generator=generator, device=z.device)
    t = torch.arange(len(z), device=z.device) * STEPS // len(z)
    xt = Diffusion(z.device).noisy(z, noise, t)
    total = 0.0
    with torch.autocast(z.device.type, torch.bfloat16, enabled=z.device.type == "cuda"):
        for part in torch.arange(len(z), device=z.device).split(256):
            eps = model(xt[part], timestep=t[part], class_labels=labels[part]).sample[:, :4].float()
            total += ((eps - noise[part]) ** 2).flatten(1).mean(1).sum().item()
    return total / len(z)


def train_dit(run: Run, data: Latents, recipe: Recipe, checkpoint: Path | None = None, save_every: int = 2000,
              held_out: tuple[Tensor, Tensor] | None = None, seconds: float | None = None,
              deadline: float | None = None, compile_model: bool = False) -> bool:  # fmt: skip
    """Train up to `recipe.iterations` or until `deadline`, a time of `time.monotonic`, where the rate has fallen to
    zero; or pause after `seconds`. Say whether the end was reached.

    Each iteration seeds its own random numbers, so a continued run draws what an uninterrupted one would.
    """
    device = data.z.device
    diffusion, generator = Diffusion(device), torch.Generator(device)
    if compile_model:
        for block in run.model.transformer_blocks:
            block.compile()  # one block at a time: the blocks are alike, so one compilation serves all
    ema, params = list(run.ema.parameters()), list(run.model.parameters())
    sums, counted, started = torch.zeros(2, device=device), 0, time.monotonic()

    def time_left() -> float:
        return 1.0 if deadline is None else (deadline - time.monotonic()) / max(deadline - started, 1e-9)

    bar = tqdm(total=recipe.iterations, initial=run.iteration, desc="transformer", unit="it", mininterval=5)
    left = time_left()
    ended = run.iteration >= recipe.iterations or left <= 0
    while not ended:
        i = run.iteration
        for group in run.optimiser.param_groups:
            group["lr"] = recipe.rate(i, left)
        generator.manual_seed(recipe.seed * 1_000_003 + i)
        x0, labels = data.batch(recipe.batch, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        t = torch.randint(STEPS, (recipe.batch,), generator=generator, device=device)
        drop = torch.rand(recipe.batch, generator=generator, device=device) < recipe.drop_label
        labels = torch.where(drop, NULL_CLASS, labels)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = run.model(diffusion.noisy(x0, noise, t), timestep=t, class_labels=labels).sample
        simple, bound = (term.mean() for term in diffusion.loss(output.float(), x0, noise, t))
        run.optimiser.zero_grad(set_to_none=True)
        (simple + bound).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        run.optimiser.step()
        decay = min(recipe.ema, (1 + i) / (10 + i))
        torch._foreach_lerp_(ema, params, 1 - decay)
        sums += torch.stack([simple.detach(), bound.detach()])
        counted, run.iteration = counted + 1, i + 1
        bar.update()
        left = time_left()
        ended = run.iteration >= recipe.iterations or left <= 0
        if run.iteration % 100 == 0 or ended:
            simple_mean, bound_mean = (sums / counted).tolist()
            sums, counted = torch.zeros_like(sums), 0
            point = {"iteration": float(run.iteration), "simple": simple_mean, "bound": bound_mean}
            if held_out is not None and (run.iteration % 1000 == 0 or ended):
                point["held_out"] = held_out_loss(run.ema, *held_out)
            run.curve.append(point)
            bar.set_postfix(simple=f"{simple_mean:.4f}", bound=f"{bound_mean:.4f}")
        out_of_time = seconds is not None and time.monotonic() - started > seconds
        if checkpoint is not None and (ended or out_of_time or run.iteration % save_every == 0):
            run.save(checkpoint)
        if out_of_time:
            break
    bar.close()
    return ended
