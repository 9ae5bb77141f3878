"""Plans tried as wholes: outcomes, candidates within budgets, local search, and the front they make."""

import math
from typing import Any

import pytest
import torch
from small_models import full_plan, small_pipeline

from calibration.errors import CalibrationError
from calibration.improve import improve
from calibration.pool import FEWER, OWN, Candidate, most_steps, pool
from calibration.prices import Macs, fixed
from calibration.recorded import Recording
from calibration.spacing import Spacing
from calibration.speedup import within
from calibration.trials import Outcome, Trials
from ditfastattn.models import adapt
from ditfastattn.sampling import Denoiser, label_condition, sample_latents
from plans import Method, Plan, make

STEPS, SCALE = 8, 4.0


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline(layers=2)


def full(pipe: Any, steps: int) -> Plan:
    return full_plan(pipe, steps, SCALE).with_mlp(adapt(pipe.transformer).mlp)


def trials(pipe: Any, first: int = 0) -> Trials:
    run = full(pipe, STEPS).sampler
    return Trials(pipe, label_condition(pipe.transformer, [1, 2, 3]), SCALE, run, 0, range(first, first + 3))


def test_outcomes() -> None:
    one, other = Outcome((0.1, 0.4), 0.3), Outcome((0.2, 0.8), 0.6)
    assert one.typical == pytest.approx(0.2)
    assert one.beats(other) and not other.beats(one) and not one.beats(one)
    mixed = Outcome((0.01, 0.9), 0.3)  # nearer on average, but not by more than chance
    assert mixed.typical < other.typical and not mixed.beats(other)
    assert Outcome((0.0, 1.0), 1.0).typical == pytest.approx(1e-3)


def test_trials_are_runs_compared(pipe: Any) -> None:
    tried = trials(pipe)
    assert tried.of(full(pipe, STEPS)).drift == 0
    denoiser = Denoiser(pipe.transformer, label_condition(pipe.transformer, [1, 2, 3]), SCALE)
    few = sample_latents(denoiser, pipe.scheduler, 4, 0, range(3)).double()
    reference = sample_latents(denoiser, pipe.scheduler, STEPS, 0, range(3)).double()
    outcome = tried.of(full(pipe, 4))
    assert outcome.drift == pytest.approx(float((few - reference).norm() / reference.norm()))
    for found, a, b in zip(outcome.distances, few, reference, strict=True):
        assert found == pytest.approx(float((a - b).norm() / b.norm()))
    assert tried.of(full(pipe, 4)) is outcome  # known, and not sampled again


def test_nan_loses_or_is_refused(pipe: Any) -> None:
    tried, other = trials(pipe), trials(pipe, 3)
    good = tried.of(full(pipe, 3))
    parameter = pipe.transformer.proj_out_2.bias
    kept = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.fill_(float("nan"))
        nowhere = tried.of(full(pipe, 4))  # a plan that fails loses against any other, and stops no search
        assert not nowhere.finite and nowhere.typical == math.inf
        assert not nowhere.beats(good) and good.beats(nowhere) and not nowhere.beats(nowhere)
        with pytest.raises(CalibrationError, match="NaN or infinite"):
            trials(pipe)
        with pytest.raises(CalibrationError, match="every plan that is cheap enough ends in NaN"):
            within(math.inf, [Candidate(FEWER, full(pipe, 4))], Macs(), tried, other, 0)
    finally:
        with torch.no_grad():
            parameter.copy_(kept)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.26])
def test_candidates_are_within_the_budget(pipe: Any, share: float) -> None:
    prices = Macs()
    budget = share * prices.of(full(pipe, STEPS))
    found = list(pool(lambda steps: full(pipe, steps), STEPS, budget, prices))
    assert all(prices.of(one.plan) <= budget * (1 + 1e-9) for one in found)
    assert max(one.plan.steps for one in found if one.kind == FEWER) == math.floor(share * STEPS)
    forecasts = {"forecasts of order 1"} if share > 0.3 else set[str]()  # of three steps, the last among them
    assert {one.kind for one in found} >= {FEWER, "reuse", *forecasts}
    without = list(pool(lambda steps: full(pipe, steps), STEPS, budget, prices, slow=[Method.AST_1, Method.AST_2]))
    assert {one.kind for one in without if not one.plan.skipped} == {FEWER, "reuse"}


def test_own_timesteps_are_candidates_and_move(pipe: Any) -> None:
    prices, seen, unseen = Macs(), trials(pipe), trials(pipe, 3)
    budget = 0.5 * prices.of(full(pipe, STEPS))
    run, condition = full(pipe, STEPS).sampler, label_condition(pipe.transformer, [1, 2, 3])
    spacing = Spacing(Recording(pipe, condition, SCALE, run, 0))
    found = list(pool(lambda steps: full(pipe, steps), STEPS, budget, prices, spaced_by=spacing.chosen))
    own = [one.plan for one in found if one.kind == OWN]
    assert [plan.sampler.timesteps for plan in own] == spacing.chosen(4) + spacing.chosen(3)
    assert all(plan.sampler.own_timesteps and prices.of(plan) <= budget for plan in own)
    front = within(budget, found, prices, seen, unseen, 12)
    assert {OWN, FEWER} <= {one.kind for one in front.finalists}
    moved, outcome = improve(own[0], seen, prices, budget, 30, 0)
    assert moved.steps == 4 and moved.sampler.timesteps[0] == run.timesteps[0] and moved.sampler.own_timesteps
    assert outcome.beats(seen.of(own[0])) if moved != own[0] else outcome == seen.of(own[0])


def test_no_budget_no_candidates(pipe: Any) -> None:
    prices = Macs()
    tiny = 0.5 * prices.of(full(pipe, 1))
    assert most_steps(lambda steps: full(pipe, steps), STEPS, tiny, prices) == 0
    candidates = list(pool(lambda steps: full(pipe, steps), STEPS, tiny, prices))
    assert not candidates
    with pytest.raises(CalibrationError, match="no plan is cheap enough"):
        within(tiny, candidates, prices, trials(pipe), trials(pipe, 3), 4)


def test_improving_never_loses_and_keeps_within_the_budget(pipe: Any) -> None:
    prices, tried = Macs(), trials(pipe)
    start = make.spaced(full(pipe, STEPS), 4, 0)
    budget = prices.of(start)
    seen: list[Outcome] = []
    plan, outcome = improve(start, tried, prices, budget, 12, 0, on_trial=seen.append)
    assert prices.of(plan) <= budget * (1 + 1e-9)
    assert outcome.typical <= tried.of(start).typical
    assert outcome == tried.of(plan)
    assert [one.typical for one in seen] == sorted((one.typical for one in seen), reverse=True)
    assert improve(start, tried, prices, budget, 12, 0)[0] == plan  # the same seed, the same plan
    slow, _ = improve(start, tried, prices, budget, 12, 0, slow=[Method.AST_1, Method.AST_2])
    assert not any(method.forecasts for site in slow.sites.values() for row in site.methods for method in row)


def test_the_front_is_verified_on_unseen_noise(pipe: Any) -> None:
    prices, seen, unseen = Macs(), trials(pipe), trials(pipe, 3)
    budget = 0.5 * prices.of(full(pipe, STEPS))
    candidates = list(pool(lambda steps: full(pipe, steps), STEPS, budget, prices))
    names: list[str] = []
    more: list[tuple[int, int]] = []  # so many told of, and so many to come

    def on_more(runs: int) -> None:
        more.append((len(names), runs))

    front = within(budget, candidates, prices, seen, unseen, 8, 0, (), lambda name, _: names.append(name), on_more)
    assert len(front.tried) == len(candidates)
    assert more == [(0, len(candidates) + 8), (len(names) - len(front.finalists), len(front.finalists))]
    assert more[1][0] <= more[0][1]
    assert all(one.unseen == unseen.of(one.plan) for one in front.finalists)
    assert front.best.cost <= budget * (1 + 1e-9)
    fewer = front.best_of(FEWER)
    assert fewer is not None and fewer.unseen is not None
    assert front.best.unseen is not None and front.best.unseen.typical <= fewer.unseen.typical


def test_fixed_costs(pipe: Any) -> None:
    plan = full(pipe, STEPS)
    assert fixed(Macs(), plan, ["attn", "mlp"]) == pytest.approx(0)
    assert fixed(Macs(), plan, ["attn"]) == pytest.approx(
        Macs().choices(plan, "mlp", [])[next(iter(Macs().choices(plan, "mlp", [])))] * plan.layers * STEPS
    )
