"""The command that measures and shows what every method costs."""

from pathlib import Path

import pytest
from small_models import random_plan, small_pipeline
from small_pixart import small_pixart_pipeline

from eval.cli import main
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
    assert "AST" in printed and "predicted block time of plan.json: " in printed and "window 2,2" in printed

    assert main([*command, "--window", "3,1"]) == 0
    assert "window 3,1" in capsys.readouterr().out
    assert main([*command, "--window", "wide"]) == 2
    assert main([*command, "--images", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_pixart_is_measured_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_pixart_pipeline().save_pretrained(tmp_path)
    assert main(["cost", "--model", str(tmp_path), "--eager", "--device", "cpu", "--images", "1"]) == 0
    assert "PixArtTransformer2DModel, 2 rows of 16 tokens" in capsys.readouterr().out
