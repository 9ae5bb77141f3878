"""Plans to begin from: fewer steps, schedules of others stretched to a budget, and what a table of errors chooses."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from calibration.errors import CalibrationError
from calibration.priced import Priced
from calibration.prices import Prices
from calibration.skips import Skips
from plans import Method, Plan
from plans.make import ORDERS, spaced, spaced_calls

FITS = 6  # tries to come within a budget
COUNTS = (1.0, 0.8, 2 / 3, 0.5)  # of the base's steps, that compressed plans take
FEWER, OWN = "fewer steps", "own timesteps"
SKIPPED, BOTH = "skipped steps", "own timesteps, skipped steps"  # chosen by the errors of gaps

Timesteps = tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """A plan, and what it is: "fewer steps"; as few, at "own timesteps"; "skipped steps", all the run's or at "own
    timesteps", or evenly spaced "skips of order 1"; evenly spaced "reuse" or "forecasts of order 1" of attention and
    MLPs; or chosen from a table of errors, "attention", "cells" or "together"."""

    kind: str
    plan: Plan

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.plan.steps} steps{calls_of(self.plan)}"


def pool(
    full: Callable[[int], Plan],
    base: int,
    budget: float,
    prices: Prices,
    slow: Sequence[Method] = (),
    priced: Priced | None = None,
    spaced_by: Callable[[int], Sequence[Timesteps]] | None = None,
    skips: Skips | None = None,
) -> Iterator[Candidate]:
    """Plans that cost no more than the budget.

    Args:
        full: the all-FULL plan of so many steps of the sampler, with the site ``mlp``.
        base: steps of the uncompressed run that the budget is a part of.
        slow: methods that are not faster than FULL, which no layer of a plan takes.
        priced: errors of all cells over ``base`` steps; None leaves out what is chosen by them.
        spaced_by: own timesteps for a number of steps; None leaves them to the sampler.
        skips: what chooses the steps that call the model; None leaves those plans out.
    """
    kept: list[Candidate] = []
    for candidate in _candidates(full, base, budget, prices, slow, priced, spaced_by, skips):
        plan = candidate.plan
        if uses(plan, slow) or computes_nothing_last(plan) or any(same_work(plan, other.plan) for other in kept):
            continue
        kept.append(candidate)
        yield candidate


def uses(plan: Plan, methods: Sequence[Method]) -> bool:
    """Whether a plan has a layer of any of these methods, besides those in steps that are skipped."""
    skipped = plan.skipped
    return any(
        method in methods
        for name, site in plan.sites.items()
        if name != "model"
        for step, row in enumerate(site.methods)
        if step not in skipped
        for method in row
    )


def computes_nothing_last(plan: Plan) -> bool:
    """Whether all that a plan knows of the last step is reused. What that step adds is detail, which counts little in
    an error and is missed in an image."""
    last = plan.steps - 1
    sites = {name: site.methods[last] for name, site in plan.sites.items() if name != "model"}
    return last in plan.skipped or (
        "mlp" in sites and all(method.reuses_output for row in sites.values() for method in row)
    )


def calls_of(plan: Plan) -> str:
    """ ", 25 model calls", where steps are skipped."""
    return f", {plan.calls} model calls" if plan.skipped else ""


def compresses_nothing(plan: Plan) -> bool:
    """Whether fewer steps, or other timesteps, are all that a plan saves by."""
    return all(method is Method.FULL for site in plan.sites.values() for row in site.methods for method in row)


def same_work(one: Plan, other: Plan) -> bool:
    """Whether two plans do the same at the same timesteps."""
    return one.sampler == other.sampler and one.sites == other.sites


def _candidates(
    full: Callable[[int], Plan],
    base: int,
    budget: float,
    prices: Prices,
    slow: Sequence[Method],
    priced: Priced | None,
    spaced_by: Callable[[int], Sequence[Timesteps]] | None,
    skips: Skips | None,
) -> Iterator[Candidate]:
    orders = [method for method in ORDERS if method not in slow]
    most = most_steps(full, base, budget, prices)
    halves = {base // part for part in (2, 3, 4) if base // part <= most}
    for steps in sorted({most, *halves, *range(max(1, most - 2), most)}, reverse=True):
        if steps:
            yield Candidate(FEWER, full(steps))
    if spaced_by is not None:
        for steps in range(most, max(1, most - 2), -1):
            for timesteps in spaced_by(steps):
                yield Candidate(OWN, full(steps).with_timesteps(timesteps))
    forecasts = [number for number, method in enumerate(ORDERS) if method.forecasts]  # a skipped step is never slow
    if skips is not None:
        for kind, leaps in ((SKIPPED, False), (BOTH, True)):
            for one in skips.chosen(full, forecasts, budget, prices, leaps):
                yield Candidate(kind if one.skipped else OWN, one)
    for number in forecasts:
        if (even := _most_computed(spaced_calls, full(base), number, budget, prices)) is not None:
            yield Candidate(f"skips of order {number}", even)
    for steps in sorted({round(share * base) for share in COUNTS}, reverse=True):
        if steps > most:
            spacings = [] if spaced_by is None else spaced_by(steps)[-1:]  # the last is by the errors of leaps
            own = [full(steps).with_timesteps(times) for times in spacings]
            for order in orders:
                kind = f"forecasts of order {ORDERS.index(order)}" if order.forecasts else "reuse"
                for whole in (full(steps), *own):
                    if (plan := _most_computed(spaced, whole, ORDERS.index(order), budget, prices)) is not None:
                        yield Candidate(kind, plan)
    if priced is None:
        return
    chosen: dict[str, Callable[[float], Plan]] = {
        "attention": priced.attention.costing,
        "cells": priced.menu.costing,
        "together": priced.rhythms.costing,
    }
    for kind, choose in chosen.items():
        with suppress(CalibrationError):  # not even the cheapest of its plans is cheap enough
            if (plan := _fitted(choose, budget, prices)) is not None:
                yield Candidate(kind, plan)


def most_steps(full: Callable[[int], Plan], base: int, budget: float, prices: Prices) -> int:
    """The most steps, fewer than all, that the budget allows without compression; 0 if not even one."""
    return bisect_right(range(1, base), budget * (1 + 1e-9), key=lambda steps: prices.of(full(steps)))


def _fitted(choose: Callable[[float], Plan], budget: float, prices: Prices) -> Plan | None:
    """A plan within the budget by all that plans cost, of which a sum of cells may leave out a little."""
    asked = budget
    for _ in range(FITS):
        plan = choose(asked)
        over = prices.of(plan) - budget
        if over <= 1e-9 * budget:
            return plan
        asked -= 1.2 * over
    return None


def _most_computed(
    make: Callable[[Plan, int, int], Plan], full: Plan, order: int, budget: float, prices: Prices
) -> Plan | None:
    """As many steps computed as the budget allows, evenly, and between them what ``make`` does with forecasts."""
    counts = range(order + 2, full.steps)  # the first and the last step, and as many between as forecasts go by
    fit = bisect_right(counts, budget * (1 + 1e-9), key=lambda computed: prices.of(make(full, computed, order)))
    return make(full, counts[fit - 1], order) if fit else None
