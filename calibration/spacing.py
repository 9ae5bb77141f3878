"""Timesteps of a plan's own: which of the uncompressed run's are worth a model call.

A sampler spaces its steps evenly by rule. What a step that is twice as long does to the image depends on where it is,
and one uncompressed run tells: its latents and predictions are all that the sampler's own formula needs to leave steps
out. The error of each such leap, carried to the end of the run, is measured; timesteps whose leaps have the least sum
of squared errors are found by dynamic programming. (Watson et al., arXiv 2106.03802, choose timesteps by dynamic
programming, for another loss; Sabour et al., arXiv 2404.14507, by a bound on such errors.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
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
STRIDES = 3  # between the steps of the run that are chosen from, at most
WIDER = 2  # steps by which a leap may be longer than all would be if even
EXACT = 1e-3  # relative L2, up to which the sampler's formula counts as found again

Leap = tuple[int | None, int, int]  # the step before, the step that is left, the step that is reached


@dataclass(frozen=True)
class _Recorded:
    """The uncompressed run. ``latents`` (B, C, h, w) before every step, and at the end; ``outputs`` guided."""

    latents: list[Tensor]
    outputs: list[Tensor]
    stands: dict[int, Trajectory]  # at some steps, from which the run can go on


class Spacing:
    """Chooses timesteps from those of an uncompressed run.

    Args:
        condition: of B images, of noise (seed, 0..B-1).
        run: what the sampler does uncompressed.
    """

    def __init__(self, pipe: Any, condition: Condition, scale: float, run: SamplerSpec, seed: int) -> None:
        self._denoiser = Denoiser(pipe.transformer, condition, scale)
        self._scheduler, self._run, self._seed = pipe.scheduler, run, seed
        self._error = cache(self._measured)

    @cached_property
    def usable(self) -> bool:
        """Whether the sampler takes timesteps, and leaps can be computed from a run of it: it adds no noise, and looks
        back by one step at most."""
        times = self._run.timesteps
        if len(times) < 3 or len(set(times)) < len(times):
            return False
        device = self._denoiser.adapter.device
        try:
            given = sampler_spec(self._scheduler, self._run.model_copy(update={"own_timesteps": True}))
            with torch.random.fork_rng([device] if device.type == "cuda" else []):  # for samplers that add noise
                return given.timesteps == times and all(map(self._found_again, range(len(times))))
        except (DitFastAttnError, TypeError, ValueError):  # what is raised by those that cannot
            return False

    def chosen(self, count: int) -> list[tuple[float, ...]]:
        """Timesteps for so many model calls, to try and to search on from: the sampler's for that number, evenly
        between the run's first and last, and by the errors of leaps among all of its steps, every second, every third.
        """
        times = self._run.timesteps
        if not 2 <= count < len(times) or not self.usable:
            return []
        found = [
            sampler_spec(self._scheduler, count).timesteps,
            tuple(float(round(time)) for time in np.linspace(times[0], times[-1], count)),
        ]
        for stride in range(1, min(len(times) // count, STRIDES) + 1):
            found.append(tuple(times[step] for step in self._path(count, stride)))
        return [own for own in dict.fromkeys(found) if len(set(own)) == count]

    def _found_again(self, now: int) -> bool:
        latents = self._recorded.latents[now + 1].double()
        off = self._reached((now - 1 if now else None, now, now + 1)) - latents
        return bool(off.norm() <= EXACT * latents.norm())

    @cached_property
    @torch.no_grad()
    def _recorded(self) -> _Recorded:
        trajectory = Trajectory(
            self._denoiser, self._scheduler, self._run, self._seed, range(len(self._denoiser.condition))
        )
        steps = len(self._run.timesteps)
        probes = {round(step) for step in np.linspace(2, steps - 1, PROBES)}
        found = _Recorded([trajectory.latents], [], {})
        for step in range(steps):
            if step in probes:
                found.stands[step] = trajectory.fork()
            output = trajectory.predict(step)
            found.outputs.append(trajectory.guided(output))
            trajectory.advance(step, output)
            found.latents.append(trajectory.latents)
        return found

    def _reached(self, leap: Leap) -> Tensor:
        """(B, C, h, w) float64: the latents that the sampler makes of the run's own by one leap."""
        before, now, to = leap
        recorded, times = self._recorded, self._run.timesteps
        steps = [now] if before is None else [before, now]
        scheduler = type(self._scheduler).from_config(self._scheduler.config)
        spec = SamplerSpec(
            class_name=self._run.class_name,
            settings={},
            timesteps=tuple(times[step] for step in steps) + times[to:],
            own_timesteps=True,
        )
        begin_run(scheduler, spec)
        latents = recorded.latents[steps[0]]
        for step, timestep in zip(steps, scheduler.timesteps, strict=False):
            latents = scheduler.step(recorded.outputs[step], timestep, recorded.latents[step]).prev_sample
        return latents.double()

    def _measured(self, leap: Leap) -> float:
        """The squared error of a leap at the end of the run, as a share of the final latents; the images' mean."""
        recorded = self._recorded
        end = recorded.latents[-1].double().flatten(1).norm(dim=1)
        off = (self._reached(leap) - recorded.latents[leap[2]].double()).flatten(1).norm(dim=1)
        return float((off / end).square().mean()) * self._growth[leap[2]] ** 2

    @cached_property
    @torch.no_grad()
    def _growth(self) -> np.ndarray:
        """By how much an error grows from each step to the end, (steps + 1,): measured at some, the geometric mean over
        images, and between them interpolated."""
        recorded, steps = self._recorded, len(self._run.timesteps)
        at, found = [], []
        for step, stand in sorted(recorded.stands.items()):
            if step < 2:
                continue
            wrong = self._reached((step - 3 if step > 2 else None, step - 2, step))
            off = (wrong - recorded.latents[step].double()).flatten(1).norm(dim=1)
            run = stand.fork()
            run.latents = wrong.to(run.latents.dtype)
            for later in range(step, steps):
                run.advance(later, run.predict(later))
            moved = (run.latents.double() - recorded.latents[-1].double()).flatten(1).norm(dim=1)
            at.append(step)
            found.append(float((moved / off.clamp_min(1e-12)).clamp_min(1e-6).log().mean()))
        return np.exp(np.interp(np.arange(steps + 1), [*at, steps], [*found, 0.0]))

    def _path(self, count: int, stride: int = 1) -> list[int]:
        """Of every ``stride``-th step of the run ``count``, the first among them, whose leaps have the least errors."""
        steps = len(self._run.timesteps)
        last = (steps - 1) // stride * stride
        longest = math.ceil(steps / count) + max(WIDER, stride)
        best: dict[tuple[int | None, int], tuple[float, list[int]]] = {(None, 0): (0.0, [0])}
        for _ in range(count - 1):
            reached: dict[tuple[int | None, int], tuple[float, list[int]]] = {}
            for (before, now), (error, path) in best.items():
                for to in range(now + stride, min(last, now + longest) + 1, stride):
                    total = error + self._error((before, now, to))
                    if (now, to) not in reached or total < reached[now, to][0]:
                        reached[now, to] = total, [*path, to]
            best = reached
        ends = [
            (error + self._error((before, now, steps)), path)
            for (before, now), (error, path) in best.items()
            if steps - now <= longest
        ]
        return min(ends)[1]


def moved(timesteps: Sequence[float], draw: Any) -> tuple[float, ...]:
    """Own timesteps, one change away: some in a row are shifted, or one is taken out and another put in between two.

    Args:
        timesteps: decreasing; the first stays.
        draw: a ``random.Random``.

    Returns:
        As many, the last at 1 or above if it was; the change may have come to nothing.
    """
    times, count = list(timesteps), len(timesteps)
    if count < 2:
        return tuple(times)
    first = draw.randrange(1, count)
    if count == 2 or draw.random() < 0.5:
        reach = max(2, round((times[0] - times[-1]) / (2 * count)))
        shift = draw.choice((-1, 1)) * draw.randint(1, reach)
        for index in range(first, min(count, first + draw.choice((1, 1, 2, 4)))):
            times[index] += shift
    else:
        del times[first]
        at = draw.randrange(count - 2)
        times.insert(at + 1, float(round((times[at] + times[at + 1]) / 2)))
    decreasing = all(before > after for before, after in pairwise(times))
    lowest = min(1.0, timesteps[-1])  # some samplers end at 0 and some above, where 0 would be their end twice
    return tuple(times) if decreasing and times[-1] >= lowest else tuple(timesteps)
