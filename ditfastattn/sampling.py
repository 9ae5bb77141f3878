"""Guided sampling in latent space with noise that depends on (seed, image index) alone."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def image_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image, so that batch size, device and order never change an image."""
    seeds = [int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1) for index in indices]
    return [torch.Generator().manual_seed(s) for s in seeds]


class Denoiser:
    """A class-conditional transformer with classifier-free guidance, both branches in one batch.

    Args:
        transformer: takes (2B, C, h, w) latents, timesteps (2B,) and class_labels (2B,).
        labels: B class labels.
        guidance_scale: s in uncond + s (cond - uncond) (arXiv 2207.12598); 1 runs the conditional branch alone.
    """

    def __init__(self, transformer: Any, labels: Sequence[int], guidance_scale: float) -> None:
        self.transformer = transformer
        self.scale = guidance_scale
        self.guided = guidance_scale != 1
        device = next(transformer.parameters()).device
        condition = torch.tensor(labels, device=device)
        null = torch.full_like(condition, transformer.config.num_embeds_ada_norm)
        self.labels = torch.cat([condition, null]) if self.guided else condition

    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The transformer's own output for (B, C, h, w) latents: (2B, out_channels, h, w) when guided."""
        batch = torch.cat([latents, latents]) if self.guided else latents
        timesteps = timestep.to(batch.device).expand(len(batch))
        return self.transformer(batch, timestep=timesteps, class_labels=self.labels).sample

    def guide(self, output: Tensor, channels: int, with_variance: bool) -> Tensor:
        """What the sampler is given: (B, channels, h, w), or twice the channels where it wants the variance."""
        if not self.guided:
            return output if with_variance else output[:, :channels]
        cond, uncond = output.chunk(2)
        eps = uncond[:, :channels] + self.scale * (cond[:, :channels] - uncond[:, :channels])
        return torch.cat([eps, cond[:, channels:]], dim=1) if with_variance else eps


class Trajectory:
    """One sampling run, a step at a time: ``latents`` and the timesteps still to come.

    Args:
        scheduler: copied, so that the caller's is left alone.
        seed, indices: the noise of image i comes from (seed, indices[i]).
        copy: False runs ``scheduler`` itself, for a session that was given it and follows its steps.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scheduler: Any,
        num_inference_steps: int,
        seed: int,
        indices: Sequence[int],
        copy: bool = True,
    ) -> None:
        config = denoiser.transformer.config
        parameter = next(denoiser.transformer.parameters())
        self.denoiser = denoiser
        self.scheduler = type(scheduler).from_config(scheduler.config) if copy else scheduler
        self.scheduler.set_timesteps(num_inference_steps)
        self.timesteps: Tensor = self.scheduler.timesteps
        self._channels = config.in_channels
        learned = getattr(self.scheduler.config, "variance_type", "") in ("learned", "learned_range")
        self._with_variance = learned and denoiser.transformer.out_channels == 2 * config.in_channels
        self._generators = image_generators(seed, indices)
        shape = (config.in_channels, config.sample_size, config.sample_size)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in self._generators])
        self.latents = noise.to(parameter) * self.scheduler.init_noise_sigma
        self._takes_generator = "generator" in inspect.signature(type(self.scheduler).step).parameters

    def model_input(self, step: int) -> Tensor:
        return self.scheduler.scale_model_input(self.latents, self.timesteps[step])

    def predict(self, step: int) -> Tensor:
        return self.denoiser.predict(self.model_input(step), self.timesteps[step])

    def advance(self, step: int, output: Tensor) -> None:
        """Moves the latents on by the transformer's output at ``step``."""
        guided = self.denoiser.guide(output, self._channels, self._with_variance)
        extra = {"generator": self._generators} if self._takes_generator else {}
        self.latents = self.scheduler.step(guided, self.timesteps[step], self.latents, **extra).prev_sample


@torch.no_grad()
def sample_latents(
    denoiser: Denoiser,
    scheduler: Any,
    num_inference_steps: int,
    seed: int,
    indices: Sequence[int],
    on_step: Callable[[int], None] | None = None,
    copy: bool = True,
) -> Tensor:
    """Final latents (B, C, h, w) of a whole run; ``on_step`` is called with each finished step.

    ``copy``: as in :class:`Trajectory`.
    """
    run = Trajectory(denoiser, scheduler, num_inference_steps, seed, indices, copy)
    for step in range(len(run.timesteps)):
        run.advance(step, run.predict(step))
        if on_step:
            on_step(step)
    return run.latents


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) to images (B, H, W, 3), uint8 on the CPU, rounded, one at a time to bound memory."""
    scaling = vae.config.scaling_factor
    images = [vae.decode(one[None].to(vae.dtype) / scaling).sample[0] for one in latents]  # (3, H, W) in [-1, 1]
    pixels = torch.stack(images).float().add(1).mul(127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu()
