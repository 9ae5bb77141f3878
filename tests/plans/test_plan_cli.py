"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from plan_examples import golden

import plans
from plans.cli import main
from plans.macs import plan_macs

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
DIT = str(GOLDEN / "dit-12x50.json")
HEUN = str(GOLDEN / "heun-12x19.json")


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", DIT]) == 0
    assert "is a valid plan: DiTTransformer2DModel, 12 layers" in capsys.readouterr().out


def test_check_against(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", DIT, "--against", DIT]) == 0
    assert main(["check", DIT, "--against", HEUN]) == 1
    out = capsys.readouterr().out
    assert "steps: the plan has 50, the other 19" in out
    assert "guidance layout: the plan has cond_first, the other uncond_first" in out


def test_list(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = {file.stem for file in (Path(plans.__file__).parent / "library").glob("*.json")}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-dpm50-mrae-0.05").mkdir()  # what lies here is no plan that ships
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert {line.split()[0] for line in lines} == names
    (skipping,) = (line for line in lines if line.startswith("demo-dpm50-speedup-2 "))
    plan = plans.load("demo-dpm50-speedup-2")
    assert skipping.split()[1:3] == [str(plan.steps), str(plan.calls)] and plan.note in skipping


def test_a_broken_plan_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text("{}")
    plans.save(golden()["full-12x4"], tmp_path / "b.json")
    monkeypatch.setattr("plans.store._LIBRARY", tmp_path)
    assert main(["list"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "a.json" in said.err and said.out.splitlines()[1].split()[0] == "b"


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", DIT]) == 0
    out = capsys.readouterr().out
    assert "".join(method.letter for method in golden()["dit-12x50"].column(0)) in out
    assert "\x1b" not in out


def test_show_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["show", DIT, "--out", str(tmp_path / "plan.PNG")]) == 0
    assert (tmp_path / "plan.PNG").read_bytes().startswith(b"\x89PNG")
    assert main(["show", DIT, "--out", str(tmp_path / "plan.gif")]) == 2
    assert "does not end in .png or .svg" in capsys.readouterr().err


def test_stats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", HEUN]) == 0
    out = capsys.readouterr().out
    plan = golden()["heun-12x19"]
    module, core = plan_macs(plan, "module"), plan_macs(plan, "core")
    assert f"{module.percent:12.2f}{core.percent:12.2f}" in out
    assert len([line for line in out.split("step  timestep")[1].splitlines() if line.strip()]) == plan.steps + 1


def test_stats_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", HEUN, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    macs = plan_macs(golden()["heun-12x19"], "core")
    assert found["core"]["percent"] == macs.percent
    assert found["core"]["residual_store_macs"] == macs.residual_store
    assert sum(found["shares_percent"].values()) == pytest.approx(100)
    assert (found["window"], found["token_order"]) == ([32, 32], "raster")


def test_diff_of_equal_plans(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", DIT, DIT]) == 0
    assert capsys.readouterr().out == "the plans are equal\n"


def test_diff_of_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = plans.load(DIT)
    grid = [list(row) for row in before.methods]
    old = grid[25][11]
    grid[25][11] = plans.Method.FULL
    after = before.with_methods(grid, before.losses)
    plans.save(after, tmp_path / "after.json")
    assert main(["diff", DIT, str(tmp_path / "after.json")]) == 1
    out = capsys.readouterr().out
    assert "cells: 1 of 600 differ" in out
    assert f"1  {old} -> FULL" in out
    assert f"{plan_macs(before).percent:.2f} % -> {plan_macs(after).percent:.2f} %" in out


def test_diff_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", DIT, HEUN]) == 1
    out = capsys.readouterr().out
    assert "steps: the first has 50, the second 19" in out
    assert "the grids have different shapes" in out


def test_diff_of_calibration_window_note_and_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plans.load(DIT)
    assert plan.calibration is not None
    other = plans.Plan(
        **dict(plan)
        | {
            "calibration": plan.calibration.model_copy(update={"threshold": 0.1, "labels": tuple(range(100))}),
            "window": plans.Window(left=1, right=2),
            "token_order": "tile",
            "note": "two\nlines",
        }
    ).with_methods(plan.methods, [[0.5] * 12] * 50)
    plans.save(other, tmp_path / "other.json")
    plans.save(plan.with_methods(plan.methods), tmp_path / "by-hand.json")
    assert main(["diff", DIT, str(tmp_path / "other.json")]) == 1
    out = capsys.readouterr().out
    assert "window: the first has 32,32, the second 1,2" in out
    assert "token_order: the first has raster, the second tile" in out
    assert "calibration threshold: the first has 0.05, the second 0.1" in out
    assert "note: the first says '', the second 'two\\nlines'" in out
    assert "losses: 600 of 600 differ" in out
    assert max(len(line) for line in out.splitlines()) < 250
    assert main(["diff", DIT, str(tmp_path / "by-hand.json")]) == 1
    assert "calibration: the first was calibrated, the second was not" in capsys.readouterr().out


def test_seal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(Path(DIT).read_text().replace('"note": ""', '"note": "edited"'))
    assert main(["check", str(path)]) == 2
    assert "python -m plans seal FILE" in capsys.readouterr().err
    assert main(["seal", str(path)]) == 0
    assert main(["seal", str(path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("sealed ")
    assert out[1].startswith("already sealed: ")
    assert plans.load(path).note == "edited"


def test_errors_are_one_sentence_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["show", "no.json"], ["stats", "no.json"], ["diff", DIT, "no.json"], ["seal", "no.json"]):
        assert main(command) == 2
        assert capsys.readouterr().err == "error: no.json does not exist; check the path\n"


def test_an_unknown_name_is_answered_with_those_that_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "demo-dpm50-mrae-0.06"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: demo-dpm50-mrae-0.06 is neither") and "demo-dpm50-mrae-0.05, " in error


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "plans", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def test_help_has_examples() -> None:
    result = _run("--help")
    assert result.returncode == 0
    assert "python -m plans show plan.json --out plan.png" in result.stdout


def test_usage_errors_exit_2() -> None:
    result = _run("paint")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    plan = golden()["full-12x4"]
    named = plans.Plan(**dict(plan) | {"model": plan.model.model_copy(update={"class_name": "DïT"})})
    plans.save(named, tmp_path / "plan.json")
    result = _run("show", str(tmp_path / "plan.json"), PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("D\\xefT, 12 layers")
    assert " MACs ####" in result.stdout


def test_a_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "plans", "show", DIT]
    result = subprocess.run(
        command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_on_a_terminal_unless_refused(environment: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    base = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    subprocess.run(
        [sys.executable, "-m", "plans", "show", str(GOLDEN / "full-12x4.json")],
        cwd=ROOT,
        stdout=theirs,
        env=base | environment,
        timeout=60,
        check=True,
    )
    os.close(theirs)
    text = os.read(ours, 100_000)
    os.close(ours)
    assert (b"\x1b[48;2;" in text) is coloured
