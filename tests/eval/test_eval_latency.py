"""Synthetic plans, where a step's time goes, and the latency command from end to end on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import full_plan, random_plan, small_pipeline
from small_pixart import small_pixart_pipeline

from ditfastattn.errors import DitFastAttnError
from ditfastattn.layout import Layout
from eval import geometry, latency
from eval.breakdown import HALF, PARTS, WHOLE, part_times, step_parts
from eval.geometry import Geometry
from eval.record import command_line
from eval.synthetic import floor_percent, synthetic_plan
from plans import Method
from plans.macs import plan_macs
from plans.method import PAPER

FULL = full_plan(small_pipeline(layers=6), steps=50)
ONES = {part + size: 1000.0 for part in PARTS for size in (WHOLE, HALF)}


@settings(deadline=None, max_examples=20)
@given(st.floats(floor_percent(50), 100), st.integers(0, 3))
def test_a_synthetic_plan_costs_what_is_asked(percent: float, seed: int) -> None:
    plan = synthetic_plan(FULL, percent, seed)
    assert plan_macs(plan).percent == pytest.approx(percent, abs=0.5)
    assert set(plan.methods[0]) == {Method.FULL}
    assert plan == synthetic_plan(FULL, percent, seed)


def test_a_synthetic_plan_mixes_methods() -> None:
    assert {method for row in synthetic_plan(FULL, 34).methods for method in row} == set(PAPER)
    with pytest.raises(DitFastAttnError, match=r"costs between 2\.0 and 100 %"):
        synthetic_plan(FULL, 1)


def test_parts_are_counted_as_the_cells_need_them() -> None:
    F, C, W, B, A = Method.FULL, Method.ASC, Method.WA_RS, Method.WA_RS_ASC, Method.AST
    plan = full_plan(small_pipeline(layers=1), steps=6).with_methods([[m] for m in (F, W, C, B, A, F)])
    times = ONES | {f"rest of the blocks{HALF}": 10_000.0}
    parts = step_parts(plan, times)
    assert {part: 6 * ms for part, ms in parts.items()} == pytest.approx(
        {
            "norm, q k v": 5,  # AST has none
            "full attention": 3,
            "window + residual": 2,
            "residuals stored": 2,  # at step 0 for W, at step 2 for B
            "out-projection": 5,
            "rest of the blocks": 3 + 3 * 10,  # C, B and the A that reads B's half take the half's time
        }
    )


def test_parts_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    pipe = small_pipeline()
    plan = random_plan(pipe)
    times = part_times(pipe.transformer, 4, plan.window, Layout(plan.guidance.layout), "sdpa", repeats=1)
    assert set(times) == set(ONES)
    assert all(value > 0 for value in times.values())
    unguided = part_times(pipe.transformer, 2, plan.window, Layout.NONE, "sdpa", repeats=1)
    assert set(unguided) == set(PARTS)


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
@pytest.mark.parametrize("make", [small_pipeline, small_pixart_pipeline])
def test_the_command(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(geometry, "WORDS", 5)
    monkeypatch.setattr(latency, "build", lambda name, device, dtype: Geometry(name, make(), True))
    options = ["--steps", "8", "--dtype", "float32", "--device", "cpu", "--out", str(tmp_path), "--repeats", "1"]
    latency.main(["--model", "dit-xl-2-256", "--batch", "1", "--shares", "50", *options])
    latency.main(["--model", "demo", "--batch", "2", "--shares", "50", *options])
    latency.main(["--model", "demo", "--batch", "2", "--shares", "50", "--no-eager", *options])
    first, second = json.loads((tmp_path / "latency.json").read_text())
    assert first["what"].startswith("random weights, synthetic plans")
    assert [row["variant"] for row in first["rows"]] == ["eager", "ours, all FULL", "ours, plan", "ours, plan"]
    assert [row["variant"] for row in second["rows"]] == ["ours, all FULL", "ours, plan", "ours, plan"]
    assert str(tmp_path) not in second["command"]
    macs = [row["attention_macs"] for row in second["rows"]]
    assert macs[0] == 100 and macs[2] == 12.5 and abs(macs[1] - 50) < 6
    parts = [row["parts_ms"] for row in second["rows"]]
    assert parts[0]["window + residual"] == 0 < parts[1]["window + residual"]
    assert (tmp_path / "latency.png").exists() and (tmp_path / "latency_parts.png").exists()


def test_commands_are_recorded_without_folders() -> None:
    assert command_line("x", ["--out", "/somewhere", "--n", "3"]) == "python -m eval x --n 3"
    assert command_line("x", ["--n", "3", "--out=/somewhere"]) == "python -m eval x --n 3"
    assert (
        command_line("x", ["--again", "/a/b.json", "a/c", "--of=/d/e.npz"])
        == "python -m eval x --again b.json a/c --of=e.npz"
    )
