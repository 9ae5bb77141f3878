"""Time and memory of every family: the command from end to end on small models, and cache bytes on a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_latte import FRAMES, small_latte_pipeline
from small_models import small_pipeline
from small_opensora import small_opensora
from small_pixart import small_pixart_pipeline

from eval import families, geometry, readme
from eval.families import Row, most_beyond
from eval.geometry import Geometry
from eval.synthetic import synthetic_plan
from plans import Method, Plan, TemporalShape
from plans.macs import plan_macs

MAKE: dict[str, Any] = {
    "dit": lambda: Geometry("dit", small_pipeline(sampler="dpm"), True),
    "pixart": lambda: Geometry("pixart", small_pixart_pipeline(), True),
    "latte": lambda: Geometry(
        "latte", small_latte_pipeline(), True, {"video_length": FRAMES, "height": 16, "width": 16}
    ),
    "open-sora": lambda: Geometry(
        "open-sora", small_opensora("dpm", text=False), True, {"num_frames": 5, "height": 12, "width": 20}
    ),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, device: str, dtype: torch.dtype) -> Geometry:
        made: Geometry = MAKE[name]()
        made.pipe.to(device, dtype)
        return made

    monkeypatch.setattr(geometry, "WORDS", 5)
    monkeypatch.setattr(geometry, "VIDEO_WORDS", 5)
    monkeypatch.setattr(families, "build", build)


def run(models: list[str], folder: Path, *options: str) -> list[dict[str, Any]]:
    fixed = ["--steps", "6", "--repeats", "1", "--shares", "50", "--out", str(folder)]
    families.main(["--model", *models, *fixed, *options])
    results: list[dict[str, Any]] = json.loads((folder / families.FILE).read_text())
    return results


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--device", "cpu", "--dtype", "float32"]
    run(["dit", "latte"], tmp_path, *options)
    results = run(["pixart", "open-sora", "latte"], tmp_path, *options)
    assert [result["model"] for result in results] == ["dit", "pixart", "open-sora", "latte"]
    for result in results:
        plain, full, plan = (Row(**row) for row in result["rows"])
        assert (plain.variant, full.variant, plan.variant) == ("no plan", "all FULL", "plan")
        assert full.cache_predicted == 0 < plan.cache_predicted
        assert abs(plan.attention_macs - 50) < 10 and set(plan.site_macs) == set(plan.kernels)
        assert min(row.ms_per_step for row in (plain, full, plan)) > 0
        assert plan.cache_measured is None  # a CPU does not count
    assert set(results[3]["rows"][2]["kernels"].values()) == {"sdpa"}
    assert results[3]["rows"][2]["kernels"].keys() == {"attn", "temporal"}

    (tmp_path / "eval" / "results").mkdir(parents=True)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert readme.families() == "Not measured yet: `python -m eval families`."
    (tmp_path / families.FILE).rename(tmp_path / "eval" / "results" / families.FILE)
    table = readme.families()
    assert table.count("\n| ") == 4 and "| attn sdpa, temporal sdpa |" in table
    assert "`python -m eval families --model pixart open-sora latte" in table


def test_bytes_beyond_another_run() -> None:
    assert most_beyond([10, 50, 30], [10, 45, 10]) == 20
    assert most_beyond([], []) is None


@settings(deadline=None, max_examples=10)
@given(st.floats(10, 100), st.integers(0, 3))
def test_a_synthetic_plan_of_two_sites_costs_what_is_asked(percent: float, seed: int) -> None:
    small = MAKE["latte"]().full_plan(20)
    shape = small.model.model_copy(
        update={"layers": 28, "tokens": 405, "temporal": TemporalShape(layers=28, frames=16)}
    )
    plan = synthetic_plan(Plan.full(model=shape, sampler=small.sampler, guidance=small.guidance), percent, seed)
    assert plan_macs(plan).percent == pytest.approx(percent, abs=0.5)
    for site in plan.sites:
        assert set(plan.sites[site].methods[0]) == {Method.FULL}
        assert percent > 60 or {method for row in plan.sites[site].methods for method in row} >= {Method.AST}


def test_open_soras_size_is_the_pipelines() -> None:
    spec = MAKE["open-sora"]().full_plan(4).model
    assert spec.temporal is not None and (spec.temporal.frames, spec.tokens) == (5, 3 * 5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(MAKE))
def test_caches_take_what_was_predicted(name: str, tmp_path: Path) -> None:
    """As the allocator counts it, beside what an all-FULL run holds at the same step."""
    (result,) = run([name], tmp_path, "--device", "cuda", "--dtype", "float32", "--kernel", "triton", "--batch", "2")
    for row in result["rows"][1:]:
        assert row["cache_measured"] == row["cache_predicted"], row
        assert row["peak_bytes"] >= row["cache_measured"]
    assert result["rows"][2]["cache_measured"] > 0
