"""One uncompressed run, kept: what its sampler makes of other steps or other outputs, and what errors become of it.

The latents and the predictions of the run are all that the sampler's own formula needs, so steps that leave out others,
or go by outputs that are not the model's, are computed without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditfastattn.condition import Condition
from ditfastattn.errors import DitFastAttnError
from ditfastattn.samplers import begin_run, sampler_spec
from ditfastattn.sampling import Denoiser, Trajectory
from plans import SamplerSpec

PROBES = 8  # steps from which an error is followed to the end
EXACT = 1e-3  # relative L2, up to which a leap to the next step counts as the run's own
LINEAR = 1e-5  # up to which the sampler's weights count as all that it does, in float64

Leap = tuple[int | None, int, int]  # the step before, the step that is left, the step that is reached


@dataclass(frozen=True)
class _Run:
    """``latents`` (B, C, h, w) before every step, and at the end; ``outputs`` guided."""

    latents: list[Tensor]
    outputs: list[Tensor]
    stands: dict[int, Trajectory]  # at some steps, from which the run can go on


class Recording:
    """An uncompressed run, made when first asked for.

    Args:
        condition: of B images, of noise (seed, 0..B-1).
        run: what the sampler does uncompressed.
    """

    def __init__(self, pipe: Any, condition: Condition, scale: float, run: SamplerSpec, seed: int) -> None:
        self.scheduler, self.run = pipe.scheduler, run
        self._denoiser, self._seed = Denoiser(pipe.transformer, condition, scale), seed
        self.weights = cache(self._weights)

    @property
    def steps(self) -> int:
        return len(self.run.timesteps)

    @property
    def latents(self) -> list[Tensor]:
        """(B, C, h, w) before every step, and at the end."""
        return self._kept.latents

    @property
    def outputs(self) -> list[Tensor]:
        """(B, C, h, w) of every step, guided."""
        return self._kept.outputs

    @cached_property
    def replays(self) -> bool:
        """Whether the sampler's formula can be replayed: it adds no noise, is linear in what it is given, and looks
        back by one step at most."""
        return self._holds(self._is_weighed)

    @cached_property
    def leaps(self) -> bool:
        """Whether steps can be left out too: the sampler takes timesteps, and what it makes of them is found again."""
        times = self.run.timesteps
        try:
            given = sampler_spec(self.scheduler, self.run.model_copy(update={"own_timesteps": True}))
        except (DitFastAttnError, TypeError, ValueError):  # what is raised by those that take none
            return False
        return given.timesteps == times and self._holds(self._is_reached)

    def _holds(self, check: Callable[[], bool]) -> bool:
        times = self.run.timesteps
        if len(times) < 3 or len(set(times)) < len(times):
            return False
        device = self._denoiser.adapter.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):  # for samplers that add noise
                return check()
        except (DitFastAttnError, TypeError, ValueError, IndexError):  # what is raised by those that cannot
            return False

    def _is_reached(self) -> bool:
        return all(
            _near(self.reached(leap), wanted.double(), EXACT)
            for leap, wanted in zip(self._own_steps(), self.latents[1:], strict=True)
        )

    def _is_weighed(self) -> bool:
        """Beside a sampler that remembers the whole run, in float64: the run's own latents may be rounded by more than
        what looking further back adds."""
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        begin_run(scheduler, self.run)
        for leap, timestep in zip(self._own_steps(), scheduler.timesteps, strict=True):
            output, latents = self.outputs[leap[1]].double(), self.latents[leap[1]].double()
            wanted = _stepped(scheduler, output, timestep, latents)
            if not _near(self.weighed(leap), wanted.double(), LINEAR):
                return False
        return True

    def _own_steps(self) -> Iterator[Leap]:
        return ((step - 1 if step else None, step, step + 1) for step in range(self.steps))

    def reached(self, leap: Leap) -> Tensor:
        """(B, C, h, w) float64: the latents that the sampler makes of the run's own by one leap, at own timesteps."""
        before, now, to = leap
        steps = [now] if before is None else [before, now]
        scheduler = self._begun(steps, to)
        latents = self.latents[steps[0]]
        for step, timestep in zip(steps, scheduler.timesteps, strict=False):
            latents = _stepped(scheduler, self.outputs[step], timestep, self.latents[step])
        return latents.double()

    def weighed(self, leap: Leap) -> Tensor:
        """(B, C, h, w) float64: the same latents from the sampler's weights."""
        before, now, _ = leap
        first = now if before is None else before
        given = (self.latents[now], self.outputs[now], self.latents[first], self.outputs[first])
        each = [weight * part.double() for weight, part in zip(self.weights(*leap), given, strict=True)]
        return torch.stack(each).sum(0)

    def _begun(self, steps: list[int], to: int) -> Any:
        """A scheduler that stands before the first of one or two steps, of which the last reaches ``to``."""
        times = self.run.timesteps
        left = tuple(times[step] for step in steps) + times[to:]
        begin_run(self._copy, self.run.model_copy(update={"timesteps": left, "own_timesteps": True}))
        return self._copy

    @cached_property
    def _copy(self) -> Any:
        """A scheduler that is begun anew every time."""
        return type(self.scheduler).from_config(self.scheduler.config)

    def _weights(self, before: int | None, now: int, to: int) -> tuple[float, ...]:
        """What a step counts: the latents that it leaves and the output there, and those of the step before it."""
        steps = [now] if before is None else [before, now]
        if list(range(steps[0], to)) == steps:  # the run's own steps
            scheduler = self._copy
            begin_run(scheduler, self.run)
            times = [scheduler.timesteps[step] for step in steps]
        else:
            scheduler = self._begun(steps, to)
            times = list(scheduler.timesteps[: len(steps)])
        one = torch.eye(4, dtype=torch.float64)[:, :, None, None, None]  # (4, B = 4, 1, 1, 1)
        if before is not None:
            _stepped(scheduler, one[3], times[0], one[2])
        return tuple(_stepped(scheduler, one[1], times[-1], one[0]).double().flatten().tolist())

    @cached_property
    @torch.no_grad()
    def _kept(self) -> _Run:
        trajectory = Trajectory(
            self._denoiser, self.scheduler, self.run, self._seed, range(len(self._denoiser.condition))
        )
        probes = {round(step) for step in np.linspace(2, self.steps - 1, PROBES)}
        found = _Run([trajectory.latents], [], {})
        for step in range(self.steps):
            if step in probes:
                found.stands[step] = trajectory.fork()
            output = trajectory.predict(step)
            found.outputs.append(trajectory.guided(output))
            trajectory.advance(step, output)
            found.latents.append(trajectory.latents)
        return found

    @cached_property
    @torch.no_grad()
    def growth(self) -> np.ndarray:
        """By how much an error grows from each step to the end, (steps + 1,): measured at some, the geometric mean over
        images, and between them interpolated."""
        at, found = [], []
        for step, stand in sorted(self._kept.stands.items()):
            if step < 2:
                continue
            wrong = self._wrong(step)
            off = (wrong.double() - self.latents[step].double()).flatten(1).norm(dim=1)
            run = stand.fork()
            run.latents = wrong
            for later in range(step, self.steps):
                run.advance(later, run.predict(later))
            moved = (run.latents.double() - self.latents[-1].double()).flatten(1).norm(dim=1)
            at.append(step)
            found.append(float((moved / off.clamp_min(1e-12)).clamp_min(1e-6).log().mean()))
        return np.exp(np.interp(np.arange(self.steps + 1), [*at, self.steps], [*found, 0.0]))

    def _wrong(self, step: int) -> Tensor:
        """(B, C, h, w) in the run's dtype: latents before a step as a leap over the step before it leaves them; where
        there are no leaps, as that step does by the output of the one before."""
        latents = self.latents[step]
        if self.leaps:
            return self.reached((step - 3 if step > 2 else None, step - 2, step)).to(latents.dtype)
        weight = self.weights(step - 2, step - 1, step)[1]
        off = self.outputs[step - 2].double() - self.outputs[step - 1].double()
        return (latents.double() + weight * off).to(latents.dtype)


def _stepped(scheduler: Any, output: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """The latents after a step. Euler's sampler warns of each before which it was not asked for the model's input."""
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(latents, timestep)
    found: Tensor = scheduler.step(output, timestep, latents).prev_sample
    return found


def _near(found: Tensor, wanted: Tensor, share: float) -> bool:
    return bool((found - wanted).norm() <= share * wanted.norm())
