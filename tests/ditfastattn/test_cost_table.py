"""The measured table: its rows, its file, and what a plan is predicted to take."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import full_plan, random_plan, small_pipeline
from small_pixart import small_pixart_pipeline

from ditfastattn.cache import Cell, LayerCache, Rows, liveness
from ditfastattn.cost import CostTable, eager_block, measure, piece_block, plan_time, predict
from ditfastattn.cost.store import cache_file
from ditfastattn.cost.table import cells_of, row_of
from ditfastattn.errors import CostError, KernelError
from ditfastattn.execute import Context, run_block
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from plans import Method, Window

ROWS = {
    "FULL": 100.0,
    "FULL + residual": 130.0,
    "FULL + half residual": 115.0,
    "WA_RS": 80.0,
    "ASC": 70.0,
    "ASC + half residual": 85.0,
    "WA_RS_ASC": 60.0,
    "AST": 40.0,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["dit", "pixart"])
def adapter(request: pytest.FixtureRequest) -> Any:
    pipe: Any = small_pipeline() if request.param == "dit" else small_pixart_pipeline()
    return adapt(pipe.transformer)


class Clocked:
    """Blocks that take a known time: the clock is moved on by them alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, microseconds: dict[str, float]) -> None:
        self.now, self.calls = 0.0, 0
        self.microseconds = microseconds
        monkeypatch.setattr("ditfastattn.cost.timing.time.perf_counter", lambda: self.now)

    def __call__(self, cell: Cell) -> Callable[[], None]:
        def run() -> None:
            self.calls += 1
            # Every fifth call is disturbed: a median does not mind.
            self.now += (self.microseconds[row_of(cell)] + 1000 * (self.calls % 5 == 0)) / 1e6

        return run


# --------------------------------------------------------------------------------------------------------- measuring


def test_every_cell_of_a_plan_has_its_row(pipe: Any) -> None:
    for scale, layout in ((4.0, Layout.COND_FIRST), (1.0, Layout.NONE)):
        rows = {row_of(cell) for cell in cells_of(layout)}
        assert rows <= set(ROWS)
        for seed in range(5):
            plan = random_plan(pipe, 12, scale, seed)
            used = {row_of(cell) for layer in range(4) for cell in liveness(plan.column(layer))}
            assert used <= rows


def test_the_real_block_is_timed(adapter: Any) -> None:
    table = CostTable.of(adapter, 4, 16, "sdpa", repeats=3)
    assert set(table.microseconds) == set(ROWS) and all(us > 0 for us in table.microseconds.values())
    assert (table.key.kernel, table.key.window, table.key.runtime) == ("sdpa", "2,2", "eager")
    unguided = CostTable.of(adapter, 3, 16, "sdpa", guided=False, repeats=1)
    assert set(unguided.microseconds) == {"FULL", "FULL + residual", "WA_RS", "AST"}
    pieces = piece_block(adapter, 4, 16, Context(SDPA(), Window.default(16), adapter.guided_layout))
    with torch.no_grad():
        assert set(measure(pieces, adapter.guided_layout, torch.device("cpu"), repeats=1)) == set(ROWS)


@torch.no_grad()
def test_both_ways_run_the_same_block(adapter: Any) -> None:
    """Eager and in pieces, on the same input, a FULL block is the model's own."""
    context = Context(SDPA(), Window.default(16), adapter.guided_layout)
    given = adapter.example(4, 16)
    adapter.example = lambda batch, tokens: given
    for store in (Rows.NOTHING, Rows.WHOLE_BATCH, Rows.CONDITIONAL_HALF):
        cell = Cell(Method.FULL, store_residual=store)
        eager, pieces = (way(adapter, 4, 16, context)(cell)() for way in (eager_block, piece_block))
        torch.testing.assert_close(eager, pieces, rtol=1e-4, atol=1e-4)
    assert "forward" not in adapter.blocks[0].module.__dict__


@torch.no_grad()
def test_what_an_eager_block_stores_is_what_its_cell_says(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[LayerCache] = []

    def spy(block: Any, cell: Cell, cache: LayerCache, *args: Any, **kwargs: Any) -> Any:
        caches.append(cache)
        return run_block(block, cell, cache, *args, **kwargs)

    monkeypatch.setattr("ditfastattn.cost.blocks.run_block", spy)
    prepare = eager_block(adapter, 4, 16, Context(SDPA(), Window.default(16), adapter.guided_layout))
    for cell in cells_of(adapter.guided_layout):
        prepare(cell)()
        if cell.store_residual:
            stored = caches[-1].residual
            assert stored is not None and stored.shape[0] == 2 * cell.store_residual


def test_times_are_medians_of_the_given_way(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Clocked(monkeypatch, ROWS)
    table = CostTable.of(adapter, 4, 16, "sdpa", blocks, runtime="clocked", repeats=9)
    assert table.microseconds == pytest.approx(ROWS)
    assert blocks.calls == len(ROWS) * (1 + 1 + 9)  # once to prepare, one round to warm up


# ------------------------------------------------------------------------------------------------------- on the disk


def clocked(adapter: Any, monkeypatch: pytest.MonkeyPatch, factor: float = 1, **kwargs: Any) -> tuple[CostTable, int]:
    blocks = Clocked(monkeypatch, {row: factor * us for row, us in ROWS.items()})
    given = {"runtime": "clocked", "window": Window(left=3, right=1)} | kwargs
    table = CostTable.of(adapter, given.pop("batch", 4), 16, "sdpa", blocks, **given)
    return table, blocks.calls


def test_a_table_is_measured_once(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, calls = clocked(adapter, monkeypatch)
    again, none = clocked(adapter, monkeypatch, factor=2)
    assert calls and not none and again == first
    for other in ({"batch": 6}, {"window": Window(left=1, right=1)}, {"runtime": "other"}, {"guided": False}):
        assert clocked(adapter, monkeypatch, factor=2, **other)[1], other
    adapter.model.double()
    assert clocked(adapter, monkeypatch)[1]
    adapter.model.float()
    anew, calls = clocked(adapter, monkeypatch, factor=2, refresh=True)
    assert calls and anew.microseconds["AST"] == pytest.approx(80)
    assert clocked(adapter, monkeypatch)[0] == anew
    stored = CostTable.stored(adapter, 16, "sdpa", Window(left=3, right=1), adapter.guided_layout)
    assert {(t.key.batch, t.key.runtime) for t in stored} == {(4, "clocked"), (6, "clocked"), (4, "other")}
    assert CostTable.stored(adapter, 16, "flex", Window(left=3, right=1), adapter.guided_layout) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "{",
        lambda text: text.replace('"version": 1', '"version": 0'),
        lambda text: text.replace('"AST": 40.0', '"AST": "soon"'),
        lambda text: text.replace('"AST": 40.0', '"AST": NaN'),
        lambda text: "[]",
        lambda text: "\0",
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning(
    adapter: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: Callable[[str], str]
) -> None:
    clocked(adapter, monkeypatch)
    file = cache_file()
    text = file.read_text()
    assert damage(text) != text
    file.write_text(damage(text))
    with caplog.at_level(logging.WARNING):
        assert clocked(adapter, monkeypatch)[1]
    assert "is ignored" in caplog.text
    assert json.loads(file.read_text()) == json.loads(text)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_tables_of_another_version_or_lacking_a_row_are_measured_anew(
    adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked(adapter, monkeypatch)
    content = json.loads(cache_file().read_text())
    del content["tables"][0]["microseconds"]["ASC"]
    content["tables"].append({"key": {"model": "X"}, "microseconds": {"FULL": 1.0}, "date": "2030-01-01"})
    cache_file().write_text(json.dumps(content))
    assert clocked(adapter, monkeypatch)[1]
    assert not clocked(adapter, monkeypatch)[1]


def test_an_unwritable_folder_is_no_error(
    adapter: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert clocked(adapter, monkeypatch)[0].microseconds["AST"] == pytest.approx(40)
    assert "could not be kept" in caplog.text


def test_bad_requests_get_one_sentence(adapter: Any) -> None:
    with pytest.raises(CostError, match="even with guidance"):
        CostTable.of(adapter, 3, 16)
    with pytest.raises(CostError, match="other than"):
        CostTable.of(adapter, 4, 16, run=lambda cell: lambda: None)
    with pytest.raises(CostError, match="not 'compiled'"):
        CostTable.of(adapter, 4, 16, runtime="compiled")
    with pytest.raises(KernelError, match="no kernel 'fast'"):
        CostTable.of(adapter, 4, 16, "fast")


# --------------------------------------------------------------------------------------------------------- a plan


def test_a_plan_takes_the_sum_of_its_cells(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapt(pipe.transformer)
    table, _ = clocked(adapter, monkeypatch, window=Window.default(16))
    plan = full_plan(pipe, 5)
    column = [Method.FULL, Method.WA_RS, Method.AST, Method.ASC, Method.WA_RS_ASC]
    plan = plan.with_methods([[method] + [Method.FULL] * 3 for method in column])
    predicted = plan_time(plan, table)
    first = 130 + 80 + 40 + 85 + 60  # FULL stores for WA_RS, ASC for WA_RS_ASC
    assert predicted.blocks == pytest.approx((first + 15 * 100) / 1000)
    assert predicted.full_blocks == pytest.approx(20 * 100 / 1000)
    assert predicted.attention == pytest.approx((first + 15 * 100 - 20 * 40) / 1000)
    assert predicted.full_attention == pytest.approx(20 * 60 / 1000)
    assert str(predicted).startswith("1.9 ms of 2.0 ms full, measured on ")
    assert str(predicted).endswith("(clocked, 4 rows a call)")

    other = replace(table, key=replace(table.key, tokens=64, window="1,1", layout="none"))
    with pytest.raises(CostError, match=r"tokens: the plan has 16, the table 64; window: .*; guidance layout: "):
        plan_time(plan, other)


def test_what_no_table_measures_has_no_predicted_time(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = clocked(adapt(pipe.transformer), monkeypatch, window=Window.default(16))
    plan = full_plan(pipe, 3)
    forecast = plan.with_methods([[Method.FULL] * 4, [Method.FULL] * 4, [Method.AST_1] * 4])
    skipping = plan.with_mlp().skipping([Method.FULL, Method.AST, Method.FULL])
    for other, names in ((forecast, "AST_1"), (skipping, "mlp, model")):
        with pytest.raises(CostError, match=f"the paper's methods, but this plan also has {names}"):
            plan_time(other, table)


def test_a_prediction_takes_the_nearest_batch_and_the_fastest_way(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, plan, window = adapt(pipe.transformer), random_plan(pipe, 5), Window.default(16)
    assert predict(adapter, plan, "sdpa", 4) is None
    for batch, factor, runtime in ((4, 2.0, "slow"), (4, 1.0, "fast"), (8, 3.0, "slow")):
        clocked(adapter, monkeypatch, factor, window=window, batch=batch, runtime=runtime)
    for rows, key in ((2, (4, "fast")), (4, (4, "fast")), (6, (4, "fast")), (16, (8, "slow"))):
        predicted = predict(adapter, plan, "sdpa", rows)
        assert predicted is not None and (predicted.table.key.batch, predicted.table.key.runtime) == key
    assert predict(adapter, plan, "flex", 4) is None


@pytest.mark.gpu
def test_on_the_gpu_eager_and_captured(adapter: Any) -> None:
    adapter.model.to("cuda", torch.bfloat16)
    eager = CostTable.of(adapter, 4, 16, "sdpa")
    context = Context(SDPA(), Window.default(16), adapter.guided_layout)
    with torch.no_grad():
        pieces = piece_block(adapter, 4, 16, context)
    graphs = CostTable.of(adapter, 4, 16, "sdpa", pieces, runtime="graphs", graphs=True)
    assert set(eager.microseconds) == set(graphs.microseconds) == set(ROWS)
    assert sum(graphs.microseconds.values()) < sum(eager.microseconds.values())
