"""Candidates that skip model calls: within the budget, what they are said to be, and moved by the search."""

import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from small_models import full_plan, small_pipeline

from calibration.calls import Calls, Schedule
from calibration.climb import Climb
from calibration.gaps import Gaps
from calibration.improve import _changed, improve
from calibration.pool import BOTH, FEWER, OWN, SKIPPED, _most_computed, computes_nothing_last, pool
from calibration.priced import priced
from calibration.prices import Macs
from calibration.recorded import Recording
from calibration.settings import Settings
from calibration.skips import CLIMBED, TOGETHER, Skips, StepPrices
from calibration.spacing import Spacing
from calibration.trials import Trials
from ditfastattn.models import adapt
from ditfastattn.samplers import make_sampler
from ditfastattn.sampling import label_condition
from plans import Method, Plan
from plans.make import ORDERS, skip, spaced, spaced_calls

STEPS, SCALE = 15, 4.0


@dataclass
class Linear(Macs):
    """A price that steps and calls alone decide."""

    begin: float = 3.0
    call: float = 2.0
    skip: float = 0.25

    def of(self, plan: Plan) -> float:
        return self.begin + self.call * plan.calls + self.skip * len(plan.skipped)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline(layers=2)


def full(pipe: Any, steps: int) -> Plan:
    return full_plan(pipe, steps, SCALE).with_mlp(adapt(pipe.transformer).mlp)


def recording(pipe: Any) -> Recording:
    return Recording(pipe, label_condition(pipe.transformer, [1, 2, 3]), SCALE, full(pipe, STEPS).sampler, 0)


@pytest.mark.parametrize("base", [6, 7, 20, 50])
def test_prices_of_steps(pipe: Any, base: int) -> None:
    price = StepPrices.of(lambda steps: full(pipe, steps), base, 1, Linear())
    assert (price.begin, price.call, price.skip) == pytest.approx((3.0, 2.0, 0.25))
    assert price.calls(3.0 + 5 * 2.0) == 5
    assert price.skips(3.0 + 5 * 2.0 + 0.5, 5, 9) == 2
    assert price.skips(3.0 + 5 * 2.0 + 0.5, 5, 1) == 1
    free = StepPrices.of(lambda steps: full(pipe, steps), base, 2, Macs())
    assert free.begin == pytest.approx(0, abs=1e-6 * free.call) and free.skip == pytest.approx(0, abs=1e-6 * free.call)


@pytest.mark.parametrize(("share", "price"), [(0.75, 1.2), (0.75, 0.7), (0.8, 0.8)])  # of a skip, where leaps pay
def test_chosen_are_within_the_budget_and_cost_what_they_may(pipe: Any, share: float, price: float) -> None:
    skips, dear, prices = Skips(recording(pipe)), Linear(skip=price), Linear()
    budget = share * prices.of(full(pipe, STEPS))
    own = skips.chosen(lambda steps: full(pipe, steps), [1], budget, dear, True)
    kept = skips.chosen(lambda steps: full(pipe, steps), [1], budget, prices, False)
    assert own and kept
    for plan in (*own, *kept):
        assert (dear if plan in own else prices).of(plan) <= budget and (plan in own or plan.skipped)
        column = plan.column(0, "model") if plan.skipped else (Method.FULL,)
        assert column[0] is Method.FULL and not set(column) & {Method.AST_2}
    times = set(full(pipe, STEPS).sampler.timesteps)
    assert all(set(plan.sampler.timesteps) < times and plan.sampler.own_timesteps for plan in own)
    assert all(not plan.sampler.own_timesteps and plan.steps == STEPS for plan in kept)
    assert any(plan.skipped for plan in own)
    assert not skips.chosen(lambda steps: full(pipe, steps), [], budget, prices, False)
    assert not skips.chosen(lambda steps: full(pipe, steps), [1], 0.1 * budget, prices, False)


def test_nothing_is_chosen_or_in_the_pool_twice(pipe: Any) -> None:
    """What leaves steps out and skips none is a plan of own timesteps, as those chosen by the errors of leaps are."""
    run = recording(pipe)
    for price in (0.02, 0.3, 0.8):
        prices = Linear(skip=price)
        budget = 0.6 * prices.of(full(pipe, STEPS))
        skips = Skips(run)
        chosen = [skips.chosen(lambda steps: full(pipe, steps), [1, 2], budget, prices, leaps) for leaps in (0, 1)]
        for plans in chosen:
            work = [(plan.sampler, plan.sites.get("model")) for plan in plans]
            assert all(one != other for at, one in enumerate(work) for other in work[:at])
            assert all("model" in plan.sites or not plan.skipped for plan in plans)
        found = pool(lambda steps: full(pipe, steps), STEPS, budget, prices, spaced_by=Spacing(run).chosen, skips=skips)
        uncompressed = [one.plan.sampler for one in found if not one.plan.skipped and one.kind in (FEWER, OWN)]
        assert all(one != other for at, one in enumerate(uncompressed) for other in uncompressed[:at])


def test_the_best_comes_first_and_none_is_too_dear(pipe: Any) -> None:
    @dataclass
    class Uneven(Linear):
        def of(self, plan: Plan) -> float:
            return super().of(plan) + (2.0 if plan.calls == 7 else 0.0)

    run = recording(pipe)
    for prices in (Linear(), Uneven()):
        budget = 3.0 + 8 * 2.0 + 7 * 0.25
        (first, *others) = Skips(run).chosen(lambda steps: full(pipe, steps), [1, 2], budget, prices, False)
        assert first.calls == 8 and all(prices.of(plan) <= budget for plan in (first, *others))
    schedule = Calls(Gaps(run, (1, 2), 4, False)).best(8, 7)
    assert schedule is not None and first.column(0, "model") == schedule.column


def test_leaps_need_a_sampler_that_takes_timesteps() -> None:
    pipe = small_pipeline(layers=2)
    pipe.scheduler = make_sampler("ddim", pipe.scheduler.config)
    prices, skips = Linear(), Skips(recording(pipe))
    budget = 0.6 * prices.of(full(pipe, STEPS))
    assert skips.chosen(lambda steps: full(pipe, steps), [1], budget, prices, False)
    assert not skips.chosen(lambda steps: full(pipe, steps), [1], budget, prices, True)


def test_own_timesteps_are_not_those_of_the_run(pipe: Any) -> None:
    """Where a skip is cheap nothing is left out, and the plan is one of skipped steps alone."""
    prices, run = Linear(), recording(pipe)
    budget = 0.6 * prices.of(full(pipe, STEPS))
    found = Skips(run).chosen(lambda steps: full(pipe, steps), [1], budget, prices, True)
    assert all(plan.sampler.own_timesteps for plan in found)


def test_leaps_by_weights_need_a_sampler_that_is_linear() -> None:
    pipe = small_pipeline(layers=2)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, thresholding=True)
    prices, run = Linear(skip=0.8), recording(pipe)
    assert run.leaps and not run.replays  # what leaps leave is found by the sampler itself
    budget = 0.6 * prices.of(full(pipe, STEPS))
    assert not Skips(run).chosen(lambda steps: full(pipe, steps), [1], budget, prices, True)


def test_nothing_is_sampled_for_what_cannot_be(pipe: Any) -> None:
    """Too few calls for gaps of five steps; more steps than a table is made for."""
    prices = Linear(skip=0.01)
    for base, share in ((100, 0.15), (101, 0.5)):
        unsampled: Any = SimpleNamespace(steps=base)
        budget = share * prices.of(full(pipe, base))
        assert not Skips(unsampled).chosen(lambda steps: full(pipe, steps), [1], budget, prices, True)


def test_free_skips_stay_free_with_rounding() -> None:
    assert StepPrices(0.0, 1.0, 1e-13).skips(2.0 - 1e-12, 2, 9) == 9


def test_as_many_even_calls_as_fit(pipe: Any) -> None:
    prices, whole = Linear(), full(pipe, STEPS)
    for count in range(3, STEPS):
        budget = 3.0 + 2.0 * count + 0.25 * (STEPS - count)
        plan = _most_computed(spaced_calls, whole, 1, budget, prices)
        assert plan is not None and plan.calls == count
        assert plan.column(0, "model")[-1] is Method.FULL
    assert _most_computed(spaced_calls, whole, 1, 1.0, prices) is None
    for order in (0, 1, 2):
        fewest = prices.begin + 2.0 * (order + 2) + 0.25 * (STEPS - order - 2)  # the last step, and what is forecast by
        assert _most_computed(spaced_calls, whole, order, fewest - 0.1, prices) is None
        plan = _most_computed(spaced_calls, whole, order, fewest, prices)
        assert plan is not None and ORDERS[order] in plan.column(0, "model")


@pytest.mark.parametrize(
    ("price", "kinds"),
    [(0.25, {SKIPPED, "skips of order 1", "skips of order 2"}), (0.8, {BOTH, "skips of order 1"})],  # 0.8: leaps pay
)
def test_in_the_pool_by_their_names(pipe: Any, price: float, kinds: set[str]) -> None:
    prices, run = Linear(skip=price), recording(pipe)
    budget = 0.75 * prices.of(full(pipe, STEPS))
    found = list(
        pool(lambda steps: full(pipe, steps), STEPS, budget, prices, spaced_by=Spacing(run).chosen, skips=Skips(run))
    )
    assert kinds <= {one.kind for one in found}
    for one in found:
        if one.kind in (SKIPPED, BOTH):
            assert one.name == f"{one.kind}, {one.plan.steps} steps, {one.plan.calls} model calls"
    slow = [Method.AST_1, Method.AST_2]  # in a layer: a step that is skipped is none the slower for it
    without = pool(lambda steps: full(pipe, steps), STEPS, budget, prices, slow, skips=Skips(run))
    assert {one.kind for one in without if one.plan.skipped} == {one.kind for one in found if one.plan.skipped}


def test_no_step_reuses_all_at_the_end(pipe: Any) -> None:
    """Neither a candidate nor what a search makes of it."""
    run, prices = recording(pipe), Macs()
    planner = priced(pipe, Settings(labels=(1, 2), steps=STEPS, loss="drift"), True)
    kinds = set[str]()
    for share in (0.4, 0.6, 0.8):
        budget = share * prices.of(full(pipe, STEPS))
        for one in pool(lambda steps: full(pipe, steps), STEPS, budget, prices, (), planner, None, Skips(run)):
            kinds.add(one.kind)
            assert not computes_nothing_last(one.plan), one.name
    assert {"reuse", "forecasts of order 1", "skips of order 1", "cells", "together", SKIPPED} <= kinds
    draw, start = random.Random(0), spaced(full(pipe, STEPS), 5, 0)
    changed = [_changed(start, draw, ORDERS, (), Macs(), Macs().of(start)) for _ in range(100)]
    assert all(one is None or not computes_nothing_last(one) for one in changed) and any(changed)


def test_what_is_computed_at_the_last_step(pipe: Any) -> None:
    whole = full(pipe, 4)
    layers = whole.layers
    last = [[Method.FULL] * layers] * 3 + [[Method.AST] * layers]
    attention = whole.with_methods(last)
    assert computes_nothing_last(skip(whole, 3)) is computes_nothing_last(whole) is False
    assert computes_nothing_last(skip(whole, 2)) and not computes_nothing_last(attention)
    assert computes_nothing_last(attention.with_methods(last, site="mlp"))
    one = [*last[:3], [Method.AST] * (layers - 1) + [Method.FULL]]
    assert not computes_nothing_last(attention.with_methods(one, site="mlp"))
    assert not computes_nothing_last(full_plan(pipe, 4, SCALE).with_methods(last))  # MLPs are computed


def test_climbs_are_by_both_shares(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def top(self: Climb, schedule: Schedule, forecasts: int, together: float) -> Schedule:
        asked.append((schedule.calls, together))
        return schedule

    monkeypatch.setattr(Climb, "top", top)
    prices = Linear()
    budget = 0.75 * prices.of(full(pipe, STEPS))
    Skips(recording(pipe)).chosen(lambda steps: full(pipe, steps), [1, 2], budget, prices, False)
    calls = [count for count, share in asked if share == TOGETHER[0]]
    assert len(set(calls)) == len(calls) == CLIMBED
    assert asked == [(count, share) for share in TOGETHER for count in calls]


def test_search_changes_which_steps_are_skipped(pipe: Any) -> None:
    prices, run = Linear(skip=0.8), full(pipe, STEPS).sampler
    condition = label_condition(pipe.transformer, [1, 2, 3])
    trials = Trials(pipe, condition, SCALE, run, 0, range(3))
    budget = 0.75 * prices.of(full(pipe, STEPS))
    chosen = Skips(recording(pipe)).chosen(lambda steps: full(pipe, steps), [1, 2], budget, prices, True)
    start = next(plan for plan in chosen if plan.skipped)
    plan, outcome = improve(start, trials, prices, budget, 25, 0)
    assert prices.of(plan) <= budget and outcome.typical <= trials.of(start).typical
    assert plan.sampler.timesteps[0] == run.timesteps[0] and plan.skipped


def test_changes_leave_the_number_of_calls(pipe: Any) -> None:
    start = spaced_calls(full(pipe, STEPS), 5, 1)
    draw, seen, prices = random.Random(0), set[tuple[Method, ...]](), Linear()
    for _ in range(100):
        changed = _changed(start, draw, ORDERS, (), prices, prices.of(start))
        if changed is not None:
            column = changed.column(0, "model")
            assert column[0] is column[-1] is Method.FULL and set(column) <= {Method.FULL, *ORDERS}
            assert changed.sampler == start.sampler and changed.calls == start.calls
            seen.add(column)
    assert len(seen) > 5
