"""Spending a budget for the drift of the final latents: searches at one price after another, each plan verified.

A price says how much drift may be bought for the MACs it saves, the same everywhere, so that no cell buys dearly what
another could have had for less. Which price keeps the whole within the budget is found by trying: each plan's drift is
measured by sampling on noise that no search has seen. Nothing here knows what a plan's cells are, only what it costs
and how far it drifts. ``threshold`` is the price.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from calibration.algorithm import Decision

BATCHES = 6  # of other noise, on which every plan is measured
# Student's t of BATCHES - 1 degrees of freedom at 97.5 %, for one value more: t sqrt(1 + 1 / BATCHES).
_SPREAD = 2.571 * math.sqrt(1 + 1 / BATCHES)
SEARCHES = 5
_START = (
    1.5  # what the demo takes: a third of a step's MACs saved, at half the price on average, and room for the spread
)
_CLOSE = 0.9  # of the budget: near enough to stop
_AIM = 0.96
_STRIDE = 4.0  # the most a threshold changes while the budget lies on one side of all that was tried


def step_drifts(decisions: Sequence[Decision]) -> list[float]:
    """What each step is predicted to move the final latents: the weighted loss of its whole row, that of the last layer
    that was compressed."""
    return [next((loss for loss in reversed(d.losses) if loss is not None), 0.0) for d in decisions]


def predicted_drift(decisions: Sequence[Decision]) -> float:
    """Of all steps together, relative L2: the root of the sum of squares, as of errors that have nothing in common."""
    return math.hypot(*step_drifts(decisions))


def upper_drift(achieved: Sequence[float]) -> float:
    """What one more batch like these :data:`BATCHES` stays under with a chance of 97.5 %.

    It is the prediction limit for the next value of a normal distribution of which only they are known.
    """
    return fmean(achieved) + _SPREAD * stdev(achieved)


@dataclass(frozen=True)
class Tried:
    """A search that was verified. ``cost``: of its plan, in any unit."""

    threshold: float
    cost: float
    upper: float


def first_price(budget: float, steps: int) -> float:
    """Where to begin, of searches by price."""
    return _START * budget / math.sqrt(steps)


def next_threshold(tried: Sequence[Tried], budget: float, first: float, cheapest: float = -math.inf) -> float | None:
    """Where to search next, or None: one is near enough, nothing could be cheaper, or there were enough.

    Drift is taken as a power of the threshold: the one that the two nearest tries show, proportional where there is but
    one.

    Args:
        first: where to begin.
        cheapest: what no plan can cost less than.
    """
    if not tried:
        return first
    within = [t for t in tried if t.upper <= budget]
    if len(tried) == SEARCHES or any(_CLOSE * budget <= t.upper for t in within):
        return None
    if any(t.cost <= cheapest or math.isclose(t.cost, cheapest) for t in within):
        return None
    below = max((t for t in tried if t.upper <= budget), key=lambda t: t.threshold, default=None)
    above = min((t for t in tried if t.upper > budget), key=lambda t: t.threshold, default=None)
    if below and above and below.threshold < above.threshold:
        between = above.threshold / below.threshold
        wanted = _step(below, above, _AIM * budget / below.upper) if below.upper else math.sqrt(between)
        # Neither end is tried again, whatever the power.
        return below.threshold * min(max(wanted, between**0.15), between**0.85)
    one = above or below
    assert one is not None
    if not one.upper:
        return one.threshold * _STRIDE
    others = [t for t in tried if t is not one and t.upper]
    wanted = _AIM * budget / one.upper
    if others:
        wanted = _step(min(others, key=lambda t: abs(math.log(t.threshold / one.threshold))), one, wanted)
    return one.threshold * min(max(wanted, 1 / _STRIDE), _STRIDE)


def _step(one: Tried, other: Tried, ratio: float) -> float:
    """By how much the threshold changes for a drift that changes by ``ratio``, if both follow a power through two
    tries. The power is kept from 1/4 to 4, so that noise between near tries does not lead far away."""
    power = math.log(other.upper / one.upper) / math.log(other.threshold / one.threshold)
    return ratio ** (1 / min(max(power, 0.25), 4.0))


def best(tried: Sequence[Tried], budget: float) -> int | None:
    """The cheapest within the budget; None if there is none."""
    within = [index for index, t in enumerate(tried) if t.upper <= budget]
    return min(within, key=lambda index: tried[index].cost, default=None)


def spend(
    budget: float, first: float, attempt: Callable[[int, float], Tried], cheapest: float = -math.inf
) -> tuple[list[Tried], int | None]:
    """Searches until a plan's drift is just within the budget, or the cheapest of all plans is.

    Args:
        first: the threshold to begin with.
        attempt: searches at a threshold, verifies, and says what was found; its first argument counts the searches.
        cheapest: what no plan can cost less than, in the unit of `Tried`.

    Returns:
        All that were tried, and the index of the best; None if none is within the budget.
    """
    tried: list[Tried] = []
    while (threshold := next_threshold(tried, budget, first, cheapest)) is not None:
        tried.append(attempt(len(tried), threshold))
    return tried, best(tried, budget)
