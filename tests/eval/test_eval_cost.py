"""The command that measures and shows what every method costs."""

import json
from pathlib import Path

import pytest
from small_models import random_plan, small_pipeline
from small_pixart import small_pixart_pipeline

from eval.cli import main
from eval.cost_check import write
from plans import save


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "cache"))


def test_methods_and_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = small_pipeline()
    pipe.save_pretrained(tmp_path / "dit")
    save(random_plan(pipe), tmp_path / "plan.json")
    command = ["cost", "--model", str(tmp_path / "dit"), "--eager", "--device", "cpu", "--images", "2"]
    assert main([*command, "--plan", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    full = next(line.split() for line in printed.splitlines() if line.startswith("FULL  "))
    # 4 rows of 16 tokens, 48 channels: 4 (4 N C^2 + 2 N^2 C), 4 x 2 N^2 C
    assert full[1:3] == [f"{4 * (4 * 16 * 48**2 + 2 * 16**2 * 48) / 1e9:.3f}", f"{4 * 2 * 16**2 * 48 / 1e9:.3f}"]
    assert "AST" in printed and "predicted run time of plan.json: " in printed and "window 2,2" in printed

    assert main([*command, "--window", "3,1"]) == 0
    assert "window 3,1" in capsys.readouterr().out
    assert main([*command, "--window", "wide"]) == 2
    assert main([*command, "--images", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_the_table_is_compared_with_whole_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_pipeline(layers=2).save_pretrained(tmp_path / "dit")
    out, picture = tmp_path / "runs" / "check.json", tmp_path / "cost.png"
    command = ["cost", "--model", str(tmp_path / "dit"), "--eager", "--device", "cpu", "--images", "1", "--check"]
    command += ["--steps", "4", "--repeats", "1", "--out", str(out), "--plot", str(picture)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "predicted    measured" in printed and "sums of cells against pairs" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    (result,) = json.loads(out.read_text())
    assert (result["model"], result["batch"], result["steps"]) == ("dit", 1, 4)
    assert [row["steps"] for row in result["rows"]] == [4] * 7 + [2]
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["predicted_ms"] / row["measured_ms"], abs=1e-3)
        assert row["measured_ms"] >= row["least_ms"] > 0
    table = result["table"]["microseconds"]
    assert result["rows"][0]["predicted_ms"] >= 4 * (table["step"] + 2 * table["FULL"]) / 1000
    write(out, result | {"steps": 5})  # takes the place of the one before
    assert [entry["steps"] for entry in json.loads(out.read_text())] == [5]
    write(out, result | {"batch": 2})
    assert len(json.loads(out.read_text())) == 2
    assert main([*command[:-6], "--steps", "3"]) == 2


def test_pixart_is_measured_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_pixart_pipeline().save_pretrained(tmp_path)
    assert main(["cost", "--model", str(tmp_path), "--eager", "--device", "cpu", "--images", "1"]) == 0
    assert "PixArtTransformer2DModel, 2 rows of 16 tokens" in capsys.readouterr().out
