"""A budget for the final latents: how it is spent, and that other noise stays within it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import small_pipeline
from thread_ranks import on_ranks

from calibration.algorithm import Decision, Trial
from calibration.budget import (
    BATCHES,
    SEARCHES,
    Tried,
    first_price,
    next_threshold,
    predicted_drift,
    spend,
    step_drifts,
    upper_drift,
)
from calibration.calibrate import Result, calibrate
from calibration.cli import main
from calibration.drift import drift, sample
from calibration.errors import CalibrationError
from calibration.journal import Journal, read_trace
from calibration.settings import Settings
from calibration.work import Watch
from ditfastattn.sampling import label_condition
from plans import Method, load
from plans.macs import plan_macs

STEPS, LABELS = 4, (1, 2)  # of a model of two layers

METHODS = (Method.AST, Method.WA_RS, Method.ASC)


def within(pipe: Any, budget: float, journal: Journal | None = None, **kwargs: Any) -> Result:
    settings = Settings(budget=budget, loss="drift", labels=LABELS, steps=STEPS, seed=3, methods=METHODS)
    return calibrate(pipe, settings, journal, **kwargs)


# ---------------------------------------------------------------------------------------------------- the spending


@given(
    power=st.floats(0.6, 1.6), scale=st.floats(0.1, 10), budget=st.floats(0.01, 0.5), steps=st.integers(2, 250)
)  # fmt: skip
def test_the_threshold_is_found_for_any_power_law(power: float, scale: float, budget: float, steps: int) -> None:
    def attempt(index: int, threshold: float) -> Tried:
        upper = scale * threshold**power
        return Tried(threshold, 1 / upper, upper)

    tried, index = spend(budget, first_price(budget, steps), attempt)
    assert 1 <= len(tried) <= SEARCHES
    assert index is None or tried[index].upper <= budget
    start = scale * (1.5 * budget / math.sqrt(steps)) ** power / budget
    if 1 / 8 < start < 8:  # not too far off to begin with
        assert index is not None and tried[index].upper > 0.7 * budget


def test_the_cheapest_within_the_budget_is_taken_and_none_where_there_is_none() -> None:
    drifts = iter([0.5, 0.04, 0.07, 0.2, 0.06])
    tried, index = spend(0.1, 9, lambda i, threshold: Tried(threshold, 50 + i, next(drifts)))
    assert len(tried) == SEARCHES and index == 1  # costs 51, the others within it 52 and 54
    tried, index = spend(0.1, 9, lambda i, threshold: Tried(threshold, 50, 7.0))
    assert index is None and tried[-1].threshold < tried[0].threshold / 100
    assert next_threshold([], 0.3, first_price(0.3, 9)) == first_price(0.3, 9) == pytest.approx(0.15)
    assert next_threshold([Tried(0.1, 50, 0.095)], 0.1, 9) is None  # near enough
    nothing_compressed = [Tried(1e-9, 100, 0.0)]
    assert next_threshold(nothing_compressed, 0.1, 9) == pytest.approx(4e-9)


def test_nothing_is_searched_for_below_the_cheapest_plan() -> None:
    cheapest = Tried(0.1, 20 * (1 + 1e-12), 0.01)
    assert next_threshold([cheapest], 0.1, 9, 20.0) is None
    assert next_threshold([cheapest], 0.1, 9, 19.0) == pytest.approx(0.4)
    assert next_threshold([Tried(0.1, 20, 0.2)], 0.1, 9, 20.0) is not None  # it is not within the budget


@pytest.mark.parametrize("methods", [METHODS, (Method.WA_RS, Method.ASC)])
def test_a_loose_budget_is_searched_for_once(methods: tuple[Method, ...]) -> None:
    pipe, searched, told = small_pipeline(layers=2), [], []
    settings = Settings(budget=0.9, loss="drift", labels=LABELS, steps=STEPS, methods=methods)
    found = calibrate(pipe, settings, watch=Watch(on_search=searched.append, on_batch=lambda *at: told.append(at)))
    assert len(searched) == 1
    assert told == [(done, 2 * BATCHES) for done in range(2 * BATCHES + 1)]  # uncompressed, then with the plan
    used = {method for decision in found.decisions[1:] for method in decision.methods}
    assert used == {Method.AST if Method.AST in methods else Method.ASC}


def test_the_part_of_a_step_is_the_loss_of_its_last_compressed_layer() -> None:
    ast, full = Method.AST, Method.FULL
    rows = [
        Decision((full, full), (None, None), ()),
        Decision((ast, ast), (0.1, 0.3), (Trial(0, ast, 0.1, 1.0), Trial(1, ast, 0.3, 1.0))),
        Decision((ast, full), (0.4, None), ()),
    ]
    assert step_drifts(rows) == [0.0, 0.3, 0.4]
    assert predicted_drift(rows) == pytest.approx(0.5)


def test_the_bound_for_one_more_batch() -> None:
    """Against the prediction interval by scipy's quantiles, written down: t(0.975, 5) = 2.5706."""
    values = (0.1, 0.2, 0.3, 0.1, 0.2, 0.3)
    mean, deviation = 0.2, math.sqrt(0.04 / 5)
    assert len(values) == BATCHES
    assert upper_drift(values) == pytest.approx(mean + 2.5706 * deviation * math.sqrt(1 + 1 / 6), rel=1e-3)


# -------------------------------------------------------------------------------------------------- a calibration


def test_other_noise_stays_within_the_budget() -> None:
    pipe = small_pipeline(layers=2)
    result = within(pipe, 0.15)
    record = result.plan.calibration
    assert record is not None and record.budget is not None and record.loss == "drift"
    assert plan_macs(result.plan).percent < 95  # it was spent
    assert record.budget.upper <= record.budget.asked == 0.15 and len(record.budget.achieved) == BATCHES
    assert record.budget.predicted == predicted_drift(result.decisions) > 0
    shown, inside = label_condition(pipe.transformer, LABELS), 0
    for seed in range(100, 110):
        full, ours = (sample(pipe, result.plan, shown, seed, 0, "auto", compressed=c) for c in (False, True))
        inside += drift(full, ours).latent_rel_l2 <= 0.15
    assert inside >= 9


def test_a_larger_budget_costs_less_and_none_costs_all() -> None:
    pipe = small_pipeline(layers=2)
    costs = [plan_macs(within(pipe, budget).plan).percent for budget in (1e-7, 0.4)]
    assert costs[0] == 100 and costs == sorted(costs, reverse=True) and costs[-1] < 90
    nothing = within(pipe, 1e-7).plan.calibration
    assert nothing is not None and nothing.budget is not None and nothing.budget.upper == 0


def test_every_rank_spends_alike() -> None:
    settings = Settings(budget=0.15, loss="drift", labels=(1, 2, 3), steps=3)
    one, two = on_ranks(2, lambda ranks: calibrate(small_pipeline(layers=2), settings, ranks=ranks))
    assert one.decisions == two.decisions
    ours, theirs = one.plan.calibration, two.plan.calibration
    assert ours is not None and theirs is not None
    assert (ours.budget, ours.threshold) == (theirs.budget, theirs.threshold)


@pytest.mark.parametrize("stop_after", [2, 3 * STEPS])
def test_an_interrupted_budget_goes_on(tmp_path: Path, stop_after: int) -> None:
    pipe = small_pipeline(layers=2)
    expected = within(pipe, 0.01)
    path, seen = tmp_path / "plan.trace.jsonl", 0

    def stop(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen > stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within(pipe, 0.01, Journal(path, {}, False), watch=Watch(on_sensitivity=stop, on_step=stop))
    journal = Journal(path, {}, resume=True)
    resumed = within(pipe, 0.01, journal)
    assert resumed.decisions == expected.decisions and resumed.plan.sites == expected.plan.sites
    assert resumed.plan.calibration is not None and expected.plan.calibration is not None
    assert resumed.plan.calibration.budget == expected.plan.calibration.budget
    journal.finish()
    assert tuple(read_trace(path)[1]) == expected.decisions
    again = within(pipe, 0.01, Journal(path, {}, resume=True))  # nothing is searched or measured again
    assert again.decisions == expected.decisions and again.measuring_runs == 0
    assert again.block_runs == STEPS * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0.0}, "above 0 and below 1"),
        ({"budget": 1.5}, "above 0 and below 1"),
        ({"loss": "mrae"}, "not by mrae"),
        ({"threshold": 0.1}, "not both"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        Settings(**{"budget": 0.1, "loss": "drift", "labels": LABELS, "steps": 3} | change)


def test_a_search_needs_a_threshold_or_a_budget() -> None:
    settings = Settings(labels=LABELS, steps=3)  # enough to measure by
    with pytest.raises(CalibrationError, match="needs a threshold, or a budget"):
        calibrate(small_pipeline(layers=1), settings)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "small"
    small_pipeline(layers=2).save_pretrained(folder)
    base = ["--model", str(folder), "--steps", "4", "--n-calib", "2", "--device", "cpu", "--output", str(tmp_path)]
    assert main([*base, "--drift", "0.1", "0.4"]) == 0
    printed = capsys.readouterr().out
    assert "asked for                         0.1" in printed and "achieved on other noise" in printed
    path = tmp_path / "small-dpm4-within-0.1.json"
    plan = load(path)
    assert plan.calibration is not None and plan.calibration.budget is not None
    assert len(plan.calibration.sensitivity) == 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["budget"]["asked"] for row in summary["rows"]] == [0.1, 0.4]
    assert main(["explain", str(path), "--layer", "1", "--step", "2"]) == 0
    explained = capsys.readouterr().out
    assert "times " in explained and "found for a drift of 0.1" in explained and "loss drift" in explained
    for wrong, words in (
        (["--drift", "0.1", "--loss", "mrae"], "leave --loss out"),
        (["--drift", "0.1", "--threshold", "0.1"], "not allowed with"),
        (["--drift", "much"], "no drift"),
        (["--drift", "2"], "below 1"),
    ):
        assert main([*base, *wrong]) == 2
        assert words in capsys.readouterr().err
