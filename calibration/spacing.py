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
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from calibration.recorded import Leap, Recording
from ditfastattn.samplers import sampler_spec

STRIDES = 3  # between the steps of the run that are chosen from, at most
WIDER = 2  # steps by which a leap may be longer than all would be if even


class Spacing:
    """Chooses timesteps from those of an uncompressed run."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._error = cache(self._measured)

    def chosen(self, count: int) -> list[tuple[float, ...]]:
        """Timesteps for so many model calls, to try and to search on from: the sampler's for that number, evenly
        between the run's first and last, and by the errors of leaps among all of its steps, every second, every third.
        """
        times = self._recording.run.timesteps
        if not 2 <= count < len(times) or not self._recording.leaps:
            return []
        found = [
            sampler_spec(self._recording.scheduler, count).timesteps,
            tuple(float(round(time)) for time in np.linspace(times[0], times[-1], count)),
        ]
        for stride in range(1, min(len(times) // count, STRIDES) + 1):
            found.append(tuple(times[step] for step in self._path(count, stride)))
        return [own for own in dict.fromkeys(found) if len(set(own)) == count]

    def _measured(self, leap: Leap) -> float:
        """The squared error of a leap at the end of the run, as a share of the final latents; the images' mean."""
        recorded = self._recording
        end = recorded.latents[-1].double().flatten(1).norm(dim=1)
        off = (recorded.reached(leap) - recorded.latents[leap[2]].double()).flatten(1).norm(dim=1)
        return float((off / end).square().mean()) * float(recorded.growth[leap[2]]) ** 2

    def _path(self, count: int, stride: int = 1) -> list[int]:
        """Of every ``stride``-th step of the run ``count``, the first among them, whose leaps have the least errors."""
        steps = self._recording.steps
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
