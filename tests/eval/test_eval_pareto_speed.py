"""Speed alone: the rows, their order and table, and that the loop tells the transformer what the pipeline does."""

from __future__ import annotations

import itertools
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_pipeline
from small_pixart import small_pixart_pipeline
from torch import Tensor

from ditfastattn.errors import DitFastAttnError
from ditfastattn.models import adapt
from eval import geometry, pareto_file, pareto_plot, pareto_speed, pareto_table, pareto_time
from eval.arguments.pareto_speed import METHODS
from eval.cli import main
from eval.geometry import Geometry
from eval.pareto_time import Faster
from plans import Plan, make
from plans.macs import plan_macs, total_macs

STEPS = 6
PIPES = {"dit-xl-2-512": small_pipeline, "pixart-sigma-2k": small_pixart_pipeline}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models in place of the large ones, nothing compiled or captured."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(geometry, "WORDS", 5)
    monkeypatch.setattr(geometry, "build", lambda name, *_: Geometry(name, PIPES[name](layers=2), True))
    monkeypatch.setattr(pareto_time, "captured", lambda transformer: transformer)


def args(model: str, out: Path, *more: str) -> Namespace:
    given = ["--model", model, "--base-steps", str(STEPS), "--device", "cpu", "--dtype", "float32", "--repeats", "1",
             "--batch", "2", "--out", str(out), *more]  # fmt: skip
    return pareto_speed.parser().parse_args(given)


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
@pytest.mark.parametrize("model", list(PIPES))
def test_every_way_is_timed(model: str, on_cpu: None, tmp_path: Path) -> None:
    pareto_speed.measure(args(model, tmp_path), "a command")
    found = json.loads((tmp_path / "pareto.json").read_text())
    (run,) = found["runs"]
    assert (run["model"], run["weights"], run["images"], run["command"]) == (model, "random", 2, "a command")
    assert "a single round" in run["timed"] and run["methods"] == list(METHODS)
    for row in found["rows"]:
        assert tuple(row) == pareto_file.KEYS and pareto_file.speed_alone(row) and row["speedup"] > 0
        assert row["run"] == row["timed_in"] == run["run"]
        assert row["psnr"] is row["ssim"] is row["latent_rel_l2"] is row["fd"] is None
    by_method = {
        name: [row["total_macs"] for row in group]
        for name, group in itertools.groupby(
            sorted(found["rows"], key=lambda row: row["method"]), lambda row: row["method"]
        )
    }
    assert by_method["full"] == [100, 100]
    assert by_method["FORA"] == [50.0, 33.33, 33.33] and len(by_method["TaylorSeer-like"]) == 6
    assert len(by_method["DiTFastAttn"]) == 6 and len(by_method["PAB"]) == 2
    assert by_method["fewer steps"][0] == 50.0 and len(by_method["fewer steps"]) == 4


def test_the_first_turn_has_one_of_each_method(on_cpu: None) -> None:
    model = geometry.build("dit-xl-2-512", "cpu", torch.float32)
    found = list(pareto_speed.ways(model, 50))
    names = [method for method, *_ in found]
    assert names[:2] == ["full", "full"] and sorted(names[2:8]) == sorted(METHODS[1:])
    assert len(found) == 2 + 5 + 3 + 6 + 9 + 2 + 6
    for method, setting, way, steps in found:
        row = pareto_speed.row("m", 50, (method, setting, way, steps), Faster(1, 1, 1))
        if isinstance(way, Plan):
            for name, macs in (("total_macs", total_macs(way)), ("attention_macs", plan_macs(way))):
                assert row[name] == round(100 * (macs.total + macs.residual_store) / macs.full, 2)
        else:
            assert row["total_macs"] == row["attention_macs"] == 2 * steps
    full = model.full_plan(50)
    assert make.fora(full, 2) in [way for *_, way, _ in found]
    shares = [plan_macs(way).percent for *_, way, _ in pareto_speed.papers("dit-xl-2-512", full)]  # type: ignore[arg-type]
    assert shares == pytest.approx([85, 69, 59, 49, 41, 34], abs=1)  # cells of two layers are coarse


@pytest.mark.parametrize("model", list(PIPES))
def test_the_transformer_is_told_what_the_pipeline_tells_it(model: str, on_cpu: None) -> None:
    pipe = PIPES[model](layers=1)
    told: dict[str, Any] = {}
    pipe.transformer.register_forward_pre_hook(lambda _, __, given: told.update(given), with_kwargs=True)
    geometry.sample(pipe, 2, 2)
    condition = geometry.condition(pipe, 2)
    assert len(condition) == 2 and len(condition.latent_shape) == 3
    for name, value in condition.arguments(adapt(pipe.transformer).guided_layout).items():
        assert torch.equal(value, told[name]) if isinstance(value, Tensor) else value == told[name]


def test_a_way_that_fails_loses_no_other(
    on_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def speedup(_: Any, way: Any, steps: int) -> Faster:
        if steps == 4:
            raise torch.OutOfMemoryError("too\nlarge")
        return Faster(2, 2, 2)

    monkeypatch.setattr(pareto_time.Stopwatch, "speedup", speedup)
    monkeypatch.setattr(pareto_time.Stopwatch, "_run", lambda *_: None)
    with pytest.raises(DitFastAttnError, match=r"not timed, see above: fewer steps 4 from 6 steps$"):
        pareto_speed.measure(args("dit-xl-2-512", tmp_path, "--only", "fewer steps"), "")
    rows = pareto_file.read(tmp_path / "pareto.json")["rows"]
    assert [row["steps"] for row in rows] == [3, 2, 5]
    assert "not timed: fewer steps 4 from 6 steps: too large" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--base-steps", "50", "1"], "--base-steps must be at least 2, got 1"),
        (["--device", "cpu"], "speed is measured on a GPU; --device is cpu"),
        (["--device", "abacus"], "there is no device 'abacus'"),
    ],
)
def test_refusals(more: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pareto-speed", "--out", str(tmp_path), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_table(tmp_path: Path) -> None:
    """Ways stand in lines, models in columns; fewer steps by share; rows with images are in the other table alone."""

    def row(method: str, setting: str, model: str, base: int, macs: float, speedup: float) -> dict[str, Any]:
        known = pareto_speed.row(model, base, (method, setting, None, base), Faster(speedup, speedup, speedup))
        return {**known, "total_macs": macs}

    images = {**row("FORA", "interval 2", "demo", 50, 50, 1.7), "setting": "interval 2", "psnr": 30.0}
    rows = [
        images,
        row("fewer steps", "25", "a", 50, 50, 1.97),
        row("FORA", "interval 2", "a", 50, 50, 1.8),
        row("fewer steps", "10", "b", 20, 50, 1.96),
        row("fewer steps", "10", "a", 20, 50, 1.95),
    ]
    run = {"model": "a", "weights": "random", "timed": "a loop", "command": "c", "device": "d", "date": "e",
           "versions": {"f": "1"}}  # fmt: skip
    lines = pareto_table.speed({"runs": [run, {"model": "demo"}], "rows": rows}, "file")
    assert lines[:5] == [
        "| way | a, 50 steps | a, 20 steps | b, 20 steps |",
        "|---|---|---|---|",
        "| fewer steps, 50 % | 50 %, 1.97 x | 50 %, 1.95 x | 50 %, 1.96 x |",
        "| FORA, interval 2 | 50 %, 1.80 x |  |  |",
        "",
    ]
    assert lines[5].startswith("Random weights, speed alone: ") and lines[5].endswith("a: a loop.")
    assert lines[7:] == ["`c` on one d; f 1; e; [file](file)."]
    rows[1] |= {"speedup_low": 1.9, "speedup_high": 2.0}
    lines = pareto_table.speed({"runs": [run], "rows": rows}, "file")
    assert lines[2] == "| fewer steps, 50 % | 50 %, 1.97 x [1.90 to 2.00] | 50 %, 1.95 x | 50 %, 1.96 x |"
    assert "in brackets the quartiles" in lines[5]
    assert all(line.startswith("| demo, 50") for line in pareto_table.at_speedups(rows)[2:])
    assert pareto_table.speed({"runs": [], "rows": []}, "")[0].startswith("Not measured yet")
    pareto_plot.plot(rows, tmp_path / "a.png")
    pareto_plot.plot([images], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
