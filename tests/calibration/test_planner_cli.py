"""Plans by speedup from the command line, the page of advice, and what cannot be asked for."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import full_plan, random_plan, small_pipeline

from calibration import planner, planner_cli
from calibration.advice import sentence
from calibration.cli import main
from calibration.errors import CalibrationError
from calibration.planner_cli import Timed
from calibration.pool import FEWER, compresses_nothing
from calibration.prices import Times
from calibration.speedup import Front, Tried, landed
from calibration.trials import Outcome
from ditfastattn.cost import CostTable, plan_time
from ditfastattn.models import adapt
from ditfastattn.pipelines import load_pipeline
from plans import Method, Plan, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small"
    small_pipeline(layers=2).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a run takes as long as its plan computes: this machine's is not steady."""
    from plans.macs import total_macs

    monkeypatch.setattr(planner_cli, "run_ms", lambda pipe, plan, *_: total_macs(plan).total / 1e6)
    monkeypatch.setattr(planner_cli, "FAR", math.inf)


def given(folder: Path, output: Path, *more: str) -> list[str]:
    return ["--model", str(folder), "--steps", "5", "--n-calib", "2", "--device", "cpu", "--evaluations", "2",
            "--output", str(output), *more]  # fmt: skip


def test_a_speedup_end_to_end(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given(folder, tmp_path, "--speedup", "1.6")) == 0
    printed = capsys.readouterr().out
    stem = tmp_path / "small-dpm5-speedup-1.6"
    plan = load(stem.with_name(stem.name + ".json"))
    assert "least drift found" in plan.note and f"num_inference_steps={plan.steps}" in printed
    for picture in (".png", ".images.png"):
        with Image.open(str(stem) + picture) as image:
            assert image.width > 200
    for words in ("uncompressed:", "fewer steps, ", "on other noise", "measured"):
        assert words in printed
    rows = printed.split("on other noise\n")[1].split("\n* taken")[0].splitlines()
    assert [row[0] for row in rows] == ["*"] + [" "] * (len(rows) - 1)
    assert [float(row.split()[-1]) for row in rows[1:]] == sorted(float(row.split()[-1]) for row in rows[1:])
    names = [row[2:].split("  ")[0] for row in rows]
    assert len(set(names)) == len(names) > 3


def test_a_table_that_the_clock_contradicts_is_measured_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = planner_cli.measured

    def measured(*given: Any, refresh: bool = False, **named: Any) -> CostTable:
        asked.append(refresh)
        table = real(*given, **named)
        return table if refresh else replace(table, microseconds={k: 90 * v for k, v in table.microseconds.items()})

    monkeypatch.setattr(planner_cli, "measured", measured)
    monkeypatch.setattr(planner_cli, "FAR", 30.0)
    table = real(adapt(load_pipeline(folder).transformer), 4, "eager")
    monkeypatch.setattr(planner_cli, "run_ms", lambda pipe, plan, *_: plan_time(plan, table).total)
    assert main(given(folder, tmp_path, "--speedup", "1.6")) == 0
    assert asked == [False, True]
    said = capsys.readouterr().out
    assert "it is measured again" in said and "still says" not in said
    assert predicted(said) < 1.5 * float(said.split("uncompressed: ")[1].split()[0])  # by the new table
    slow, fast = (plan_time(full_plan(load_pipeline(folder), 5), table).total * factor for factor in (1e5, 1e-3))
    for ms in (slow, fast):  # the clock stays far away on either side
        asked.clear()
        monkeypatch.setattr(planner_cli, "run_ms", lambda *_, ms=ms: ms)
        with pytest.raises(Stopped):
            monkeypatch.setattr(planner_cli.Planner, "errors", stopped)
            main(given(folder, tmp_path, "--speedup", "1.6"))
        said = capsys.readouterr().out
        assert asked == [False, True]
        assert "the table still says" in said and f"the clock {ms:.1f} ms" in said


def test_a_clock_that_was_disturbed_once_is_no_contradiction(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = planner_cli.measured(adapt(load_pipeline(folder).transformer), 4, "eager")
    full = plan_time(full_plan(load_pipeline(folder), 5), table).total
    told = iter([10 * full])
    monkeypatch.setattr(planner_cli, "FAR", 5.0)
    monkeypatch.setattr(planner_cli, "run_ms", lambda *_: next(told, full))
    monkeypatch.setattr(planner_cli.Planner, "errors", stopped)
    with pytest.raises(Stopped):
        main(given(folder, tmp_path, "--speedup", "1.6"))
    said = capsys.readouterr().out
    assert "measured again" not in said and f"uncompressed: {full:.1f} ms" in said


def test_a_plan_is_timed_in_turn_with_the_uncompressed_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is ten times as slow from some time on tells no other speedup."""
    from plans.macs import total_macs

    runs: list[bool] = []

    def clock(pipe: Any, plan: Plan, *_: Any) -> float:
        runs.append(compresses_nothing(plan) and plan.steps == 5)
        return total_macs(plan).total / 1e6 * (1 if len(runs) < 3 else 10)

    monkeypatch.setattr(planner_cli, "run_ms", clock)
    assert main(given(folder, tmp_path, "--speedup", "1.6")) == 0
    assert runs[:7] == [True, *[False, True] * 3]
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("measured ")]
    assert 1.5 < float(told.split()[3]) < 2.5


def test_a_latency_is_in_milliseconds_by_the_clock(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the uncompressed run took at the start."""
    from plans.macs import total_macs

    runs: list[float] = []

    def clock(pipe: Any, plan: Plan, *_: Any) -> float:
        runs.append(total_macs(plan).total / 1e6 * (1 if runs else 1.4))
        return runs[-1]

    monkeypatch.setattr(planner_cli, "run_ms", clock)
    full = total_macs(full_plan(load_pipeline(folder), 5)).total / 1e6
    assert main(given(folder, tmp_path, "--latency-ms", f"{0.85 * full:.6f}")) == 0
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("measured ")]
    ms, speedup = float(told.split()[1]), float(told.split()[3])
    assert 0.5 * full < ms <= 0.85 * full * 1.03 and ms * speedup == pytest.approx(full, rel=0.05)


def test_runs_in_turn() -> None:
    timed = Timed.of([(1.0, 2.0), (30.0, 40.0), (1.2, 2.2)])
    assert (timed.ms, timed.full_ms, timed.share) == (1.2, 2.2, pytest.approx(1.2 / 2.2))


class Stopped(Exception):
    pass


def stopped(*args: object) -> None:
    raise Stopped


def predicted(said: str) -> float:
    """The milliseconds of the plan that was taken."""
    (line,) = [line for line in said.splitlines() if line.startswith("* ") and " x " in line]
    return float(line.split(" x ")[0].split()[-2])


def test_advice(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *given(folder, tmp_path, "--speedup", "1.3", "2")]) == 0
    page = (tmp_path / "advice.md").read_text()
    assert page in capsys.readouterr().out
    assert page.count("| 1.30 x |") == page.count("| 2.00 x |") == 1
    assert page.count(": take ") == 2
    with Image.open(tmp_path / "advice.png") as image:
        assert image.width > 400


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--speedup", "1"], "give a number above 1"),
        (["--speedup", "nan"], "give a number above 1"),
        (["--speedup", "2", "2"], "stands twice"),
        (["--latency-ms", "-3"], "give a number above 0"),
        (["--speedup", "2", "--loss", "mrae"], "--loss does not go with a plan by time"),
        (["--speedup", "2", "--resume"], "--resume does not go"),
        (["--speedup", "2", "--methods", "ASC"], "--methods does not go"),
        (["--speedup", "1.2000001", "1.2000002"], "two plans would be written to one file"),
        (["--speedup", "2", "--batch", "0"], "at least one image"),
        (["--speedup", "2", "--threshold", "0.1"], "not allowed with"),
        (["--speedup", "2", "--evaluations", "-1"], "0 or more"),
        (["--threshold", "0.1"], "--evaluations is for plans by time"),  # which all of these are given
        (["--speedup", "100"], "no plan is cheap enough"),
        (["--latency-ms", "1e9"], "nothing has to be compressed"),
        (["--speedup", "1.5", "2", "--output", "one.json"], "is one file"),
    ],
)
def test_what_cannot_be_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    more: list[str], reason: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(given(folder, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert reason in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("more", [["--speedup", "1.6"], ["--speedup=1.6"], ["--latency-ms=3"], ["advise"]])
def test_an_interrupted_search_by_time_begins_anew(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    def stopped(*args: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(planner_cli, "_table", stopped)
    assert main([*more, *given(folder, tmp_path)]) == 130
    error = capsys.readouterr().err
    assert "interrupted; a search by time begins anew" in error and "--resume" not in error


def test_other_files_are_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = tmp_path / "mine.json"
    foreign.write_text('{"mine": 1}')
    assert main(given(folder, foreign, "--speedup", "1.5")) == 2
    assert "was not written by this command" in capsys.readouterr().err and foreign.read_text() == '{"mine": 1}'
    assert main(given(folder, foreign / "below", "--speedup", "1.5")) == 2
    assert f"cannot be written to, for {foreign} is no folder" in capsys.readouterr().err
    ours = tmp_path / "ours.json"
    for _ in range(2):  # its own plan is replaced
        assert main(given(folder, ours, "--speedup", "1.6")) == 0


def test_of_a_sampler_that_calls_the_model_twice_a_step(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given(folder, tmp_path, "--speedup", "1.5", "--sampler", "heun")) == 0
    plan = load(tmp_path / "small-heun5-speedup-1.5.json")
    printed = capsys.readouterr().out
    assert f"num_inference_steps={(plan.steps + 1) // 2})" in printed  # 2 n - 1 calls for n steps
    assert f", {(plan.steps + 1) // 2} steps" in plan.note
    assert "drift 0.0000" not in plan.note and "inf dB" not in printed


def test_advice_counts_steps_as_the_sampler_does() -> None:
    other = front_of(1.0).best  # of three model calls
    fewer = replace(other, kind=FEWER)
    front = Front((fewer, other), (fewer, other))
    heun, dpm = (small_pipeline(layers=1, sampler=name).scheduler for name in ("heun", "dpm"))
    assert "take 2 steps; compression adds nothing" in sentence(2.0, front, heun)
    assert "take 3 steps; compression adds nothing" in sentence(2.0, front, dpm)
    near = replace(other, unseen=Outcome((0.01,), 0.01))
    told = sentence(2.0, Front((fewer, near), (fewer, near)), heun)
    assert "take the plan (cells, 2 steps)" in told and "those of 2 steps" in told
    assert "cells, 2 steps; the sampler alone" in sentence(2.0, Front((near,), (near,)), heun)


def test_without_memory_for_a_table_of_errors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(planner, "priced", full)
    assert main(given(folder, tmp_path, "--speedup", "1.6")) == 0
    printed = capsys.readouterr().out
    assert printed.count("no memory to measure the errors of cells") == 1 and "fewer steps" in printed
    assert "together" not in printed and "cells, 5 steps" not in printed


def test_without_a_method_that_is_faster_than_full(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Times, "slow", lambda self: tuple(m for m in Method if m is not Method.FULL))
    assert main(given(folder, tmp_path, "--speedup", "1.6")) == 0
    plan = load(tmp_path / "small-dpm5-speedup-1.6.json")
    assert compresses_nothing(plan) and plan.steps < 5


def front_of(budget: float, plan: Plan | None = None) -> Front:
    plan = plan or random_plan(small_pipeline(layers=1), steps=3)
    tried = Tried("cells", plan, budget, Outcome((0.1,), 0.1), Outcome((0.1,), 0.1))
    return Front((tried,), (tried,))


def test_a_search_that_misses_by_the_clock_is_done_again() -> None:
    asked: list[float] = []

    def search(budget: float) -> Front:
        asked.append(budget)
        return front_of(budget)

    # By the clock everything takes a quarter more than predicted.
    missed: list[float] = []
    front, taken = landed(
        search, 200.0, 0.5, lambda plan: 1.25 * asked[-1] / 200, on_miss=lambda _, taken: missed.append(taken)
    )
    assert missed == [0.625]
    assert asked == [100.0, pytest.approx(80.0)]
    assert front.best.cost == pytest.approx(80.0) and taken == pytest.approx(0.5)
    asked.clear()
    landed(search, 200.0, 0.5, lambda plan: 0.51)
    assert len(asked) == 1  # near enough
    asked.clear()
    _, taken = landed(search, 200.0, 0.5, lambda plan: 0.36)
    assert asked == [100.0, pytest.approx(200 * 0.5 * 0.5 / 0.36)] and taken == 0.36
    asked.clear()
    landed(search, 200.0, 0.9, lambda plan: 0.3)
    assert asked == [180.0, 190.0]  # never all of the uncompressed time
    takes = iter([0.55, 0.44])
    assert landed(search, 200.0, 0.5, lambda plan: next(takes))[1] == 0.44  # in time, though farther from it

    def once(budget: float) -> Front:
        if budget < 100:
            raise CalibrationError("none is cheap enough")
        return front_of(budget)

    assert landed(once, 200.0, 0.5, lambda plan: 0.55)[1] == 0.55  # what was found before stands
    asked.clear()
    nothing = full_plan(small_pipeline(layers=1), steps=3)
    landed(lambda budget: (asked.append(budget), front_of(budget, nothing))[1], 200.0, 0.5, lambda plan: 0.4)
    assert len(asked) == 1  # no count of steps lies nearer
