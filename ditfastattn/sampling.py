"""Guided sampling in latent space with noise that depends on (seed, image index) alone."""

import copy as copying
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ditfastattn.condition import Condition, FromLabels
from ditfastattn.errors import ApplyError
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.samplers import begin_run, takes_variance
from plans import SamplerSpec


def image_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image, so that batch size, device and order never change an image."""
    seeds = [int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1) for index in indices]
    return [torch.Generator().manual_seed(s) for s in seeds]


def label_condition(transformer: Any, labels: Sequence[int]) -> Condition:
    """Class labels as that transformer is told of them. Raises ApplyError for one that takes none."""
    adapter = adapt(transformer)
    if not isinstance(adapter, FromLabels):
        raise ApplyError(f"{type(transformer).__name__} is not conditioned on class labels; give it prompts")
    return adapter.condition(labels)


class Denoiser:
    """A transformer with classifier-free guidance, both branches in one batch.

    Args:
        transformer: of a kind that ``ditfastattn.models`` knows, which says how it is called.
        condition: of B images.
        guidance_scale: s in uncond + s (cond - uncond) (arXiv 2207.12598); 1 runs the conditional branch alone.
    """

    def __init__(self, transformer: Any, condition: Condition, guidance_scale: float) -> None:
        self.transformer = transformer
        self.adapter = adapt(transformer)
        self.condition = condition
        self.scale = guidance_scale
        self.guided = guidance_scale != 1
        self.layout = self.adapter.guided_layout if self.guided else Layout.NONE
        self.rows = len(condition) * (2 if self.guided else 1)  # of a call
        self.arguments = condition.arguments(self.layout)

    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The transformer's own output for (B, C, h, w) latents: (2B, out_channels, h, w) when guided."""
        batch = torch.cat([latents, latents]) if self.guided else latents
        timesteps = timestep.to(batch.device).expand(len(batch))
        return self.adapter.predict(batch, timesteps, self.arguments)

    def guide(self, output: Tensor, channels: int, with_variance: bool) -> Tensor:
        """What the sampler is given: (B, channels, h, w), or twice the channels where it wants the variance."""
        if not self.guided:
            return output if with_variance else output[:, :channels]
        first, second = output.chunk(2)
        cond, uncond = (first, second) if self.layout is Layout.COND_FIRST else (second, first)
        moved = self.condition.guided_channels or channels
        eps = uncond[:, :moved] + self.scale * (cond[:, :moved] - uncond[:, :moved])
        return torch.cat([eps, cond[:, moved:] if with_variance else cond[:, moved:channels]], dim=1)


class Trajectory:
    """One sampling run, a step at a time: ``latents`` and the timesteps still to come.

    Args:
        scheduler: copied, so that the caller's is left alone.
        run: a number of inference steps, or what a plan records, ``plan.sampler``.
        seed, indices: the noise of image i comes from (seed, indices[i]).
        copy: False runs ``scheduler`` itself, for a session that was given it and follows its steps.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scheduler: Any,
        run: int | SamplerSpec,
        seed: int,
        indices: Sequence[int],
        copy: bool = True,
    ) -> None:
        shape = denoiser.condition.latent_shape
        parameter = next(denoiser.transformer.parameters())
        self.denoiser = denoiser
        self.scheduler = type(scheduler).from_config(scheduler.config) if copy else scheduler
        begin_run(self.scheduler, run)
        self.timesteps: Tensor = self.scheduler.timesteps
        self._channels = shape[0]
        self._with_variance = takes_variance(scheduler) and denoiser.adapter.spec().out_channels == 2 * shape[0]
        self._generators = image_generators(seed, indices)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in self._generators])
        dtype = denoiser.condition.latents_dtype or parameter.dtype
        self.latents = noise.to(parameter.device, dtype) * getattr(self.scheduler, "init_noise_sigma", 1.0)
        self._takes_generator = "generator" in inspect.signature(type(self.scheduler).step).parameters

    def model_input(self, step: int) -> Tensor:
        scale = getattr(self.scheduler, "scale_model_input", None)  # samplers of flow matching have none
        return self.latents if scale is None else scale(self.latents, self.timesteps[step])

    def predict(self, step: int) -> Tensor:
        return self.denoiser.predict(self.model_input(step), self.timesteps[step])

    def guided(self, output: Tensor) -> Tensor:
        """The guided prediction that the sampler goes by, (B, C, h, w), from the transformer's output: guidance as this
        run applies it, and no learned variance."""
        return self.denoiser.guide(output, self._channels, with_variance=False)

    def fork(self) -> Self:
        """A second run that stands where this one stands; from here on neither moves the other. The noise that a
        stochastic sampler adds is the same in both."""
        other = copying.copy(self)
        other.scheduler = copying.deepcopy(self.scheduler)
        other._generators = [generator.clone_state() for generator in self._generators]
        return other

    def advance(self, step: int, output: Tensor) -> None:
        """Moves the latents on by the transformer's output at ``step``."""
        guided = self.denoiser.guide(output, self._channels, self._with_variance)
        extra = {"generator": self._generators} if self._takes_generator else {}
        self.latents = self.scheduler.step(guided, self.timesteps[step], self.latents, **extra).prev_sample


@torch.no_grad()
def sample_latents(
    denoiser: Denoiser,
    scheduler: Any,
    run: int | SamplerSpec,
    seed: int,
    indices: Sequence[int],
    on_step: Callable[[int], None] | None = None,
    copy: bool = True,
) -> Tensor:
    """Final latents (B, C, h, w) of a whole run; ``on_step`` is called with each finished step.

    ``run`` and ``copy``: as in :class:`Trajectory`.
    """
    trajectory = Trajectory(denoiser, scheduler, run, seed, indices, copy)
    for step in range(len(trajectory.timesteps)):
        trajectory.advance(step, trajectory.predict(step))
        if on_step:
            on_step(step)
    return trajectory.latents
