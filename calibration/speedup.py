"""The plan of least drift within a budget of time: candidates of every kind, tried, the best improved, all verified.

What single cells do is known from one run (``calibration.error_table``) but not what they do together, so nothing is
believed: every candidate is sampled, the best two are searched on from, and the best of every kind and of the search
are compared on noise that nothing was searched on; by that the last choice is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from calibration.errors import CalibrationError
from calibration.improve import improve
from calibration.pool import BOTH, FEWER, OWN, SKIPPED, Candidate, compresses_nothing
from calibration.prices import Prices
from calibration.trials import Outcome, Trials
from plans import Method, Plan

SEARCHED = 2  # candidates that are improved
COUNTS = 3  # of each kind in `MANY` that are verified: which of them suit shows on many images only
MANY = (FEWER, OWN, SKIPPED, BOTH)
HOPELESS = 1.5  # times as far as the best candidate, from where no search is begun
NEAR = 0.03  # of a time
ATTEMPTS = 2  # at keeping it


@dataclass(frozen=True)
class Tried(Candidate):
    """What a plan costs, and how far it ended on the images of the search; ``unseen`` on others, if tried there."""

    cost: float
    seen: Outcome
    unseen: Outcome | None = None


@dataclass(frozen=True)
class Front:
    """All that was tried within one budget, and on unseen noise the finalists: the best of every kind, and what the
    search made of the best two."""

    tried: tuple[Tried, ...]
    finalists: tuple[Tried, ...]

    @property
    def best(self) -> Tried:
        """The finalist that ended nearest, on unseen noise; of equals fewer steps, which need no plan."""
        return min(self.finalists, key=lambda tried: (_typical(tried.unseen), tried.kind != FEWER))

    def best_of(self, kind: str) -> Tried | None:
        """The finalist of one kind that ended nearest."""
        found = [tried for tried in self.finalists if tried.kind == kind]
        return min(found, key=lambda tried: _typical(tried.unseen), default=None)


def within(
    budget: float,
    candidates: Sequence[Candidate],
    prices: Prices,
    trials: Trials,
    unseen: Trials,
    evaluations: int,
    seed: int = 0,
    slow: Sequence[Method] = (),
    on_trial: Callable[[str, Outcome], None] | None = None,
    on_more: Callable[[int], None] | None = None,
) -> Front:
    """Plans that cost no more than ``budget``, the best of them found.

    Args:
        candidates: within the budget.
        trials, unseen: the same model and reference on the noise of the search, and on other noise.
        evaluations: runs that are spent on improving.
        slow: methods that are not faster than FULL.
        on_trial: called after every run with the name of what was tried, and the best outcome of it so far.
        on_more: told of so many runs to come, before the search and before what it found is verified.

    Raises:
        CalibrationError: no candidates, or none that ends in images.
    """
    if not candidates:
        raise CalibrationError(
            "no plan is cheap enough, not even one of a single step: ask for a smaller speedup, or for more time"
        )
    tried = []
    if on_more:
        on_more(len(candidates) + evaluations)
    for candidate in candidates:
        outcome = trials.of(candidate.plan)
        tried.append(Tried(candidate.kind, candidate.plan, prices.of(candidate.plan), outcome))
        if on_trial:
            on_trial(candidate.name, outcome)
    tried.sort(key=lambda one: one.seen.typical)
    best_of_kind = {one.kind: one for one in reversed(tried)}
    finalists = list(best_of_kind.values())
    for kind in MANY:
        finalists += [one for one in tried if one.kind == kind][1:COUNTS]
    chosen = sorted((one for one in finalists if one.kind != FEWER), key=lambda one: one.seen.typical)[:SEARCHED]
    chosen = [one for one in chosen if one.seen.typical <= HOPELESS * chosen[0].seen.typical]
    for one in chosen:
        plan, outcome = improve(
            one.plan,
            trials,
            prices,
            budget,
            evaluations // len(chosen),
            seed,
            slow,
            (lambda found, name=one.name: on_trial(f"{name}, searched on", found)) if on_trial else None,  # type: ignore[misc]
        )
        if plan != one.plan:
            finalists.append(Tried(f"{one.kind}, searched", plan, prices.of(plan), outcome))
    if on_more:
        on_more(len(finalists))
    verified = []
    for finalist in finalists:
        outcome = unseen.of(finalist.plan)
        if outcome.finite:
            verified.append(replace(finalist, unseen=outcome))
        if on_trial:
            on_trial(f"{finalist.name}, on other noise", outcome)
    if not verified:
        raise CalibrationError(
            "every plan that is cheap enough ends in NaN or infinite values: use --dtype float32 or bfloat16"
        )
    return Front(tuple(tried), tuple(verified))


def landed(
    search: Callable[[float], Front],
    full: float,
    share: float,
    measured: Callable[[Plan], float],
    on_miss: Callable[[Front, float], None] | None = None,
) -> tuple[Front, float]:
    """A search whose best plan takes what it may by the clock, not only by prediction, and the share that it takes.

    Where it does not, the next search is given as much more or less as the clock says. Of what keeps the time (to
    :data:`NEAR`) the nearest is taken, else the fastest.

    Args:
        search: what is found within a budget.
        full: cost of the uncompressed run, in the unit of the budgets.
        share: of the uncompressed run's time, that a plan may take.
        measured: the share that it takes by the clock.
        on_miss: told of what is searched again for, and of its share.
    """
    asked = share
    found: list[tuple[Front, float]] = []
    for number in range(1, ATTEMPTS + 1):
        try:
            front = search(asked * full)
        except CalibrationError:
            if found:
                break  # what was found before stands
            raise
        taken = measured(front.best.plan)
        found.append((front, taken))
        if abs(taken / share - 1) <= NEAR or (taken < share and compresses_nothing(front.best.plan)):
            break
        asked = min(asked * share / taken, (asked + 1) / 2)  # never all of the uncompressed run's
        if on_miss is not None and number < ATTEMPTS:
            on_miss(front, taken)
    in_time = [one for one in found if one[1] <= share * (1 + NEAR)]
    if in_time:
        return min(in_time, key=lambda one: _typical(one[0].best.unseen))
    return min(found, key=lambda one: one[1])


def _typical(outcome: Outcome | None) -> float:
    assert outcome is not None
    return outcome.typical
