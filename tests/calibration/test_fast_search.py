"""The search fast: a budget spent by the errors of cells, with no candidate tried."""

import math
from pathlib import Path

import pytest
import torch
from small_models import small_pipeline

from calibration.calibrate import calibrate
from calibration.cli import main
from calibration.errors import CalibrationError
from calibration.journal import Journal, read_trace
from calibration.settings import Settings
from calibration.trials import Trials
from ditfastattn.sampling import label_condition
from plans import Method, load

STEPS = 6


def settings(budget: float, search: str = "fast") -> Settings:
    return Settings(budget=budget, labels=(1, 2, 3), steps=STEPS, loss="drift", search=search)


def test_a_budget_is_kept_with_few_block_runs() -> None:
    pipe = small_pipeline(layers=3)
    fast, plain = (calibrate(pipe, settings(0.05, search)) for search in ("fast", "plain"))
    record = fast.plan.calibration
    assert record is not None and record.search == "fast" and record.budget is not None
    assert record.budget.upper <= 0.05 and len(record.budget.achieved) == 6
    assert any(method is not Method.FULL for row in fast.plan.methods for method in row)
    assert fast.block_runs < plain.block_runs / 2
    # What was verified is what a run of the plan gives.
    condition = label_condition(pipe.transformer, [1, 2, 3])
    trials = Trials(pipe, condition, 4.0, fast.plan.sampler, 0, range(6, 9))
    assert trials.of(fast.plan).drift == pytest.approx(record.budget.achieved[0], rel=1e-5)
    # Losses add up over the layers of a step, and over steps to what was predicted.
    lasts = [max((loss for loss in d.losses if loss is not None), default=0.0) for d in fast.decisions]
    assert math.hypot(*lasts) == pytest.approx(record.budget.predicted)
    for decision in fast.decisions:
        kept = [loss for loss in decision.losses if loss is not None]
        assert kept == sorted(kept) and not decision.trials


def test_the_latents_are_the_plans() -> None:
    pipe = small_pipeline(layers=2)
    found = calibrate(pipe, settings(0.05))
    trials = Trials(pipe, label_condition(pipe.transformer, [1, 2, 3]), 4.0, found.plan.sampler, 0, range(3))
    off = (found.latents.double() - trials.reference.double()).norm() / trials.reference.double().norm()
    assert trials.of(found.plan).drift == pytest.approx(float(off), rel=1e-4)


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    pipe = small_pipeline(layers=2)
    whole = calibrate(pipe, settings(0.02), Journal(tmp_path / "whole.jsonl", {"a": 1}, False))
    journal = Journal(tmp_path / "cut.jsonl", {"a": 1}, False)
    for cut in (STEPS + 1, STEPS + 4, 2 * STEPS + 2):
        lines = 0
        for name in ("measured", "append", "begin_search", "achieved"):
            original = getattr(journal, name)

            def counted(*given: object, original=original, cut=cut) -> None:  # type: ignore[no-untyped-def]
                nonlocal lines
                lines += 1
                if lines > cut:
                    raise KeyboardInterrupt
                original(*given)

            setattr(journal, name, counted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(pipe, settings(0.02), journal)
        journal = Journal(tmp_path / "cut.jsonl", {"a": 1}, True)
    resumed = calibrate(pipe, settings(0.02), journal)
    assert resumed.plan.sites == whole.plan.sites and torch.equal(resumed.latents, whole.latents)


def test_the_command_and_its_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "small"
    small_pipeline(layers=2).save_pretrained(folder)
    given = ["--model", str(folder), "--steps", "5", "--n-calib", "2", "--device", "cpu", "--output", str(tmp_path)]
    assert main([*given, "--drift", "0.05", "--search", "fast"]) == 0
    assert "block runs" in capsys.readouterr().out
    path = tmp_path / "small-dpm5-within-0.05.json"
    assert load(path).calibration is not None
    _, decisions = read_trace(path.with_suffix(".trace.jsonl"))
    assert [d.methods for d in decisions] == [tuple(row) for row in load(path).methods]
    assert main(["explain", str(path), "--layer", "1", "--step", "2"]) == 0
    assert "no candidate was tried" in capsys.readouterr().out
    assert main([*given, "--threshold", "0.05", "--search", "fast"]) == 2
    assert "give --drift" in capsys.readouterr().err


def test_fast_needs_a_budget() -> None:
    with pytest.raises(CalibrationError, match="give --drift"):
        Settings(threshold=0.1, labels=(1,), search="fast")
