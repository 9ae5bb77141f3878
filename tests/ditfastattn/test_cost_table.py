"""The measured table: its rows, and its file."""

import json
import logging
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made_costs import BLOCKS, TIMES, Clocked, clocked
from small_models import full_plan, random_plan, small_pipeline
from small_pixart import small_pixart_pipeline

from ditfastattn.cache import Cell, LayerCache, Rows, liveness
from ditfastattn.cost import (
    CAPTURED,
    COMPILED,
    EAGER,
    CostTable,
    EagerParts,
    PreparedParts,
    measure,
    measured,
    runtimes_on,
)
from ditfastattn.cost.parts import Parts
from ditfastattn.cost.rows import BEGIN, CALL, HOST_BLOCK, HOST_CALL, HOST_STEP, STEP, Row, row_of, rows_of
from ditfastattn.cost.store import cache_file
from ditfastattn.errors import CostError, KernelError
from ditfastattn.execute import Context, run_parts
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from plans import Method, Plan, Window
from plans.site import methods_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["dit", "pixart"])
def adapter(request: pytest.FixtureRequest) -> Any:
    pipe: Any = small_pipeline() if request.param == "dit" else small_pixart_pipeline()
    return adapt(pipe.transformer)


# --------------------------------------------------------------------------------------------------------- measuring


def test_every_cell_of_a_plan_has_its_row(pipe: Any) -> None:
    for scale, layout in ((4.0, Layout.COND_FIRST), (1.0, Layout.NONE)):
        bare = {row.name for row in rows_of(layout, mlps=False)}
        rows = bare | {row.name for row in rows_of(layout, mlps=True)}
        assert rows - {"AST_1", "AST_2"} <= set(TIMES)
        for seed in range(5):
            full = full_plan(pipe, 12, scale)
            for plan in (random_plan(pipe, 12, scale, seed), every_site(full, seed)):
                for site in plan.sites:
                    cells = [
                        cell
                        for layer in range(plan.model.shape(site).layers)
                        for cell in liveness(plan.column(layer, site), skipped=plan.skipped if site != "model" else ())
                    ]
                    assert {row_of(site, cell) for cell in cells} <= rows


def every_site(full: Plan, seed: int) -> Plan:
    """A plan that mixes all that its sites may have."""
    choose, guided = random.Random(seed), full.guidance.layout != "none"
    plan = full.with_mlp()
    for site in plan.sites:
        methods = [m for m in methods_of(site) if guided or not m.shares_guidance]
        grid = [[Method.FULL] * plan.layers] * 3
        grid += [[choose.choice(methods) for _ in range(plan.layers)] for _ in range(plan.steps - 3)]
        plan = plan.with_methods(grid, site=site)
    rows = [Method.FULL] * 4 + [Method.AST, Method.FULL, Method.AST_2, Method.FULL] + [Method.FULL] * (plan.steps - 8)
    return plan.skipping(rows)


def parts_of(adapter: Any, kind: type[Parts]) -> Parts:
    with torch.no_grad():
        return kind(adapter, 4, 16, Context(SDPA(), Window.default(16), adapter.guided_layout))


def test_the_real_model_is_timed(adapter: Any) -> None:
    table = CostTable.of(adapter, 4, 16, "sdpa", repeats=1)
    expected = {row.name for row in rows_of(adapter.guided_layout, mlps=True)}
    assert set(table.microseconds) == expected | {STEP, BEGIN}
    assert all(us > 0 for us in table.microseconds.values())
    assert (table.key.kernel, table.key.window, table.key.runtime) == ("sdpa", "2,2", "eager")
    assert table.sites == ("attn", "mlp", "model") and len(table.pair_errors()) == 3
    unguided = CostTable.of(adapter, 3, 16, "sdpa", guided=False, repeats=1)
    assert not any("ASC" in row or "half" in row for row in unguided.microseconds)
    way = partial(PreparedParts, adapter, 4, 16)
    prepared = CostTable.of(adapter, 4, 16, "sdpa", way, runtime="pieces", repeats=1)
    assert set(prepared.microseconds) == expected | {STEP, BEGIN, CALL}
    assert "forward" not in adapter.model.__dict__ and "forward" not in adapter.blocks[0].module.__dict__


@torch.no_grad()
def test_both_ways_run_the_same_rows(adapter: Any) -> None:
    """Eager and prepared, on the same input and the same stored tensors."""
    given = adapter.example(4, 16)
    adapter.example = lambda batch, tokens: given
    eager, prepared = parts_of(adapter, EagerParts), parts_of(adapter, PreparedParts)
    for row in rows_of(adapter.guided_layout, mlps=True):
        for parts in (eager, prepared):  # a row may store
            torch.manual_seed(0)
            parts.__dict__["_stored"] = Parts._stored.func(parts)  # type: ignore[attr-defined]
        if not row.permutes and not (row.model and row.model.method.reuses_output):
            one, other = (parts.prepare(row)() for parts in (eager, prepared))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=lambda m, row=row: f"{row.name}: {m}")


@torch.no_grad()
def test_a_full_block_is_the_models_own(adapter: Any) -> None:
    """All blocks one after the other, and all of a call but the blocks."""
    parts = parts_of(adapter, EagerParts)
    seen = []
    hook = adapter.blocks[-1].module.register_forward_hook(lambda module, args, output: seen.append(output))
    adapter.model(**parts.given)
    hook.remove()
    assert parts.layers == len(adapter.blocks)
    torch.testing.assert_close(parts.prepare(Row("FULL"))(), seen[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_a_row_stores_is_what_its_cell_says(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[tuple[LayerCache, LayerCache]] = []

    def spy(block: Any, attention: Any, parts: Any, *args: Any, **kwargs: Any) -> Any:
        mlp = parts["mlp"]
        before = mlp[1].output
        result = run_parts(block, attention, parts, *args, **kwargs)
        if mlp[0].store_output:
            assert mlp[1].output is not before
            caches.append((attention[1], mlp[1]))
        return result

    monkeypatch.setattr("ditfastattn.cost.eager.run_parts", spy)
    eager = parts_of(adapter, EagerParts)
    for store, name in ((Rows.WHOLE_BATCH, "FULL"), (Rows.CONDITIONAL_HALF, "ASC")):
        eager.prepare(Row(name, mlp=Cell(Method[name], store_output=store)))()
        output = caches[-1][1].output
        assert output is not None and output.shape[0] == 2 * store
        prepared = parts_of(adapter, PreparedParts)
        cache = prepared.stored(0, Row("", attn=Cell(Method.FULL, store_residual=store)))[0]
        assert cache.residual is not None and cache.residual.shape[0] == 2 * store


def test_few_layers_are_run_where_their_stored_tensors_take_too_much(
    adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = 7 * 4 * 4 * 16 * 48  # seven float32 tensors (B, N, C)
    for limit, layers in ((each - 1, 1), (2 * each, 2), (100 * each, len(adapter.blocks))):
        monkeypatch.setattr("ditfastattn.cost.parts.STORED_BYTES", limit)
        assert parts_of(adapter, PreparedParts).layers == layers


def test_times_are_medians_of_the_given_way(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    way = Clocked(monkeypatch, TIMES)
    table = CostTable.of(adapter, 4, 16, "sdpa", lambda context: way, runtime="clocked", repeats=9)
    assert table.microseconds == pytest.approx(TIMES)
    count = len(rows_of(adapter.guided_layout, mlps=True))
    assert way.calls == count * (1 + 1 + 9)  # once to prepare, one round to warm up
    four = Clocked(monkeypatch, TIMES, layers=4)
    times = measure(four, rows_of(adapter.guided_layout, mlps=True), torch.device("cpu"), repeats=9)
    assert times == pytest.approx({name: TIMES[name] / (4 if name in BLOCKS else 1) for name in times})


# ------------------------------------------------------------------------------------------------------- on the disk


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
        lambda text: text.replace('"version": 2', '"version": 0'),
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
        CostTable.of(adapter, 4, 16, way=partial(PreparedParts, adapter, 4, 16))
    with pytest.raises(CostError, match="not 'compiled'"):
        CostTable.of(adapter, 4, 16, runtime="compiled")
    with pytest.raises(KernelError, match="no kernel 'fast'"):
        CostTable.of(adapter, 4, 16, "fast")


def test_tables_by_runtime(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtimes_on(torch.device("cpu")) == (EAGER, COMPILED) and runtimes_on(torch.device("cuda"))[-1] == CAPTURED
    window = Window(left=3, right=1)
    stored, _ = clocked(adapter, monkeypatch, runtime=COMPILED)
    assert measured(adapter, 4, COMPILED, "sdpa", window=window) == stored  # nothing is compiled for it
    eager = measured(adapter, 4, EAGER, "sdpa", window=window)
    assert (eager.key.runtime, eager.key.tokens) == ("eager", 16)
    with pytest.raises(CostError, match="no runtime 'compiled, CUDA graphs' on cpu; choose one of eager, compiled"):
        measured(adapter, 4, CAPTURED)


@pytest.mark.gpu
def test_on_the_gpu_eager_and_captured(adapter: Any) -> None:
    adapter.model.to("cuda", torch.bfloat16)
    eager = CostTable.of(adapter, 4, 16, "sdpa")
    way = partial(PreparedParts, adapter, 4, 16, graphs=True)
    graphs = CostTable.of(adapter, 4, 16, "sdpa", way, runtime="graphs", graphs=True)
    assert set(eager.microseconds) | {CALL, HOST_STEP, HOST_CALL, HOST_BLOCK} == set(graphs.microseconds)
    blocks = [row.name for row in rows_of(adapter.guided_layout, mlps=True) if row.is_block]
    assert sum(graphs.microseconds[row] for row in blocks) < sum(eager.microseconds[row] for row in blocks)
    assert graphs.times("attn", Cell(Method.FULL)) > 0 and all(us > 0 for us in graphs.launching)
