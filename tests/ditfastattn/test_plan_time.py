"""What a run of a plan is predicted to take: sums of a hand-made table's rows, exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made_costs import TIMES, clocked
from small_latte import small_latte_pipeline
from small_models import full_plan, random_plan, small_pipeline
from small_native_dit import small_native_dit
from small_pixart import small_pixart_pipeline

from ditfastattn.cache import Cell, Rows, liveness
from ditfastattn.cost import CostTable, full_time, plan_time, predict
from ditfastattn.cost.steps import Sampling, usual_scheduler
from ditfastattn.errors import CostError
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.sampling import Denoiser, Trajectory, label_condition
from plans import Method, Window
from plans.make import fora, skip, taylorseer

FULL, AST, AST_1, AST_2 = Method.FULL, Method.AST, Method.AST_1, Method.AST_2
LAYERS = 4
REST = 60 + 10  # of a call without its blocks, its modulations
BEGIN = 1700 - 200 - REST - LAYERS * 100


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def table(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> CostTable:
    return clocked(adapt(pipe.transformer), monkeypatch, window=Window.default(16))[0]


def all_full(steps: int) -> float:
    return BEGIN + steps * (200 + REST + LAYERS * 100)


def test_cells_and_what_no_plan_saves(table: CostTable) -> None:
    whole, half = Rows.WHOLE_BATCH, Rows.CONDITIONAL_HALF
    for cell, us in (
        (Cell(FULL), 60),
        (Cell(FULL, store_output=whole), 60),
        (Cell(FULL, store_residual=whole), 90),
        (Cell(Method.ASC, store_residual=half), 45),
        (Cell(AST), 0),
        (Cell(AST_2, weights=(1.0, 2.0, 3.0)), 6),
    ):
        assert table.times("attn", cell) == pytest.approx(us)
    for cell, us in ((Cell(FULL), 40), (Cell(FULL, store_output=whole), 43), (Cell(AST), 8), (Cell(AST_1), 11)):
        assert table.times("mlp", cell) == pytest.approx(us)
    for cell, us in ((Cell(FULL), 70), (Cell(FULL, store_output=whole), 72), (Cell(AST), 0), (Cell(AST_2), 4)):
        assert table.times("model", cell) == pytest.approx(us)
    assert (table.overhead, table.begin, table.permuting) == pytest.approx((200, BEGIN, 6))
    assert table.launching == (0, 0)
    bare = {row: us for row, us in TIMES.items() if "mlp" not in row} | {"AST_1": 45.0}
    assert replace(table, microseconds=bare).times("attn", Cell(AST_1)) == pytest.approx(5)  # beside a computed MLP
    with pytest.raises(CostError, match="no row 'mlp WA_RS'"):
        table.times("mlp", Cell(Method.WA_RS))


def test_sums_of_cells_are_compared_with_pairs(table: CostTable) -> None:
    errors = table.pair_errors()
    assert errors.keys() == {"FULL, mlp AST", "AST_2, mlp AST_2", "WA_RS_ASC, mlp ASC"}
    assert errors["FULL, mlp AST"] == pytest.approx((60 + 8) / 64 - 1)
    assert errors["AST_2, mlp AST_2"] == pytest.approx((6 + 12) / 20 - 1)
    assert errors["WA_RS_ASC, mlp ASC"] == pytest.approx(0)


def test_methods_that_are_slower_than_full_are_named(table: CostTable) -> None:
    assert table.never_slower("attn") == tuple(Method)
    slow = table.microseconds | {"WA_RS": 100.1, "mlp ASC": 41.0, "model AST_2": 80.0, "ASC": 100.0}
    other = replace(table, microseconds=slow)
    assert other.never_slower("attn") == tuple(method for method in Method if method is not Method.WA_RS)
    assert other.never_slower("mlp") == (AST, AST_1, AST_2, FULL)
    assert other.never_slower("model") == (AST, AST_1, FULL)
    unguided = replace(table, key=replace(table.key, layout="none"))
    assert unguided.never_slower("attn") == (AST, AST_1, AST_2, Method.WA_RS, FULL)


def test_a_plan_takes_the_sum_of_its_cells(pipe: Any, table: CostTable) -> None:
    column = [FULL, Method.WA_RS, AST, Method.ASC, Method.WA_RS_ASC]
    plan = full_plan(pipe, 5).with_methods([[method] + [FULL] * 3 for method in column])
    predicted = plan_time(plan, table)
    first = 130 + 80 + 40 + 85 + 60  # FULL stores for WA_RS, ASC for WA_RS_ASC
    assert predicted.blocks == pytest.approx((first + 15 * 100) / 1000)
    assert predicted.full_blocks == pytest.approx(20 * 100 / 1000)
    assert predicted.attention == pytest.approx((first + 15 * 100 - 20 * 40) / 1000)
    assert predicted.full_attention == pytest.approx(20 * 60 / 1000)
    assert predicted.total == pytest.approx((BEGIN + 5 * (200 + REST) + first + 15 * 100) / 1000)
    assert predicted.full == pytest.approx(all_full(5) / 1000)
    assert predicted.full_at(3) == full_time(table, 3) == pytest.approx(all_full(3) / 1000)
    assert str(predicted).startswith("4.3 ms of 4.4 ms full, measured on ")
    assert str(predicted).endswith("(clocked, 4 rows a call)")


def test_plans_by_rule(pipe: Any, table: CostTable) -> None:
    full = full_plan(pipe, 6)
    assert plan_time(full, table).total == plan_time(full.with_mlp(), table).total == pytest.approx(all_full(6) / 1000)
    step = 200 + REST
    # Computed at 0, 2 and 4, where MLPs are stored, and reused at the steps after.
    reused = BEGIN + 3 * (step + LAYERS * (60 + 43)) + 3 * (step + LAYERS * (0 + 8))
    assert plan_time(fora(full, 2), table).total == pytest.approx(reused / 1000)
    # Step 1 has but one output to go by.
    forecast = BEGIN + 3 * (step + LAYERS * (60 + 43)) + (step + LAYERS * 8) + 2 * (step + LAYERS * (4 + 11))
    assert plan_time(taylorseer(full, 2, 1), table).total == pytest.approx(forecast / 1000)
    only = BEGIN + 3 * (step + LAYERS * 100) + (step + LAYERS * 40) + 2 * (step + LAYERS * 44)
    assert plan_time(taylorseer(full, 2, 1, mlp=False), table).total == pytest.approx(only / 1000)


def test_skipped_steps(pipe: Any, table: CostTable) -> None:
    full = full_plan(pipe, 6)
    called = 200 + REST + 2 + LAYERS * 100  # its output stored
    skipped = BEGIN + 3 * called + 200 + 2 * (200 + 7 - 5)  # the first of them reused
    assert plan_time(skip(full, 2, 1), table).total == pytest.approx(skipped / 1000)
    # With MLPs: what is stored before a skipped step is read after it.
    grid = [[method] * LAYERS for method in (FULL, AST, FULL, FULL, AST, FULL)]
    plan = full.with_mlp().with_methods(grid, site="mlp").skipping([FULL, AST, FULL, FULL, FULL, FULL])
    blocks = 4 * LAYERS * 100 + LAYERS * (3 + 60 + 8)  # only step 3's output is read, by step 4
    total = BEGIN + 6 * 200 + 5 * REST + 2 + blocks
    assert plan_time(plan, table).total == pytest.approx(total / 1000)


def test_a_host_that_is_slower_than_the_device_is_what_counts(pipe: Any, table: CostTable) -> None:
    plan = skip(full_plan(pipe, 6), 2)
    assert plan_time(plan, table).total == pytest.approx((BEGIN + 6 * 200 + 3 * (72 + LAYERS * 100)) / 1000)
    host = table.microseconds | {"step, launched": 900.0, "call, launched": 30.0, "block, launched": 5.0}
    slow = replace(table, microseconds=host)
    assert slow.launching == (900, 30 + LAYERS * 5)
    assert plan_time(plan, slow).total == pytest.approx((BEGIN + 6 * 900 + 3 * 50) / 1000)
    quick = replace(table, microseconds=host | {"step, launched": 20.0})
    assert plan_time(plan, quick).total == plan_time(plan, table).total


def test_a_token_order_costs_where_it_is_used(pipe: Any, table: CostTable) -> None:
    full = full_plan(pipe, 3).model_copy(update={"token_order": "tile"})
    assert plan_time(full, table).total == pytest.approx(all_full(3) / 1000)
    windowed = [[FULL] * 4, [Method.WA_RS] + [FULL] * 3, [FULL] * 4]
    raster, tile = (
        plan_time(full.model_copy(update={"token_order": order}).with_methods(windowed), table).total
        for order in ("raster", "tile")
    )
    assert tile - raster == pytest.approx(3 * 6 / 1000)


def test_every_term_is_of_the_public_interface(pipe: Any, table: CostTable) -> None:
    """What a planner adds up is what a plan is predicted to take."""
    plan = random_plan(pipe, 7)
    blocks = sum(
        table.times("attn", cell) + table.times("mlp", Cell(FULL))
        for layer in range(LAYERS)
        for cell in liveness(plan.column(layer))
    )
    steps = plan.steps * (table.overhead + table.times("model", Cell(FULL)))
    assert plan_time(plan, table).total == pytest.approx((table.begin + steps + blocks) / 1000)


def test_what_the_table_does_not_speak_of_is_refused(pipe: Any, table: CostTable) -> None:
    other = replace(table, key=replace(table.key, tokens=64, window="1,1", layout="none", layers=5))
    words = r"layers: the plan has 4, the table 5; tokens: the plan has 16, the table 64; window: .*; guidance layout: "
    with pytest.raises(CostError, match=words):
        plan_time(full_plan(pipe, 5), other)
    with pytest.raises(CostError, match="attention between frames too"):
        plan_time(full_plan(small_latte_pipeline(), 5), table)


def test_a_prediction_takes_the_nearest_batch_and_the_fastest_way(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, plan, window = adapt(pipe.transformer), random_plan(pipe, 5), Window.default(16)
    assert predict(adapter, plan, "sdpa", 4) is None
    for batch, factor, runtime in ((4, 2.0, "slow"), (4, 1.0, "fast"), (8, 3.0, "slow")):
        clocked(adapter, monkeypatch, factor, window=window, batch=batch, runtime=runtime)
    for rows, key in ((2, (4, "fast")), (4, (4, "fast")), (6, (4, "fast")), (16, (8, "slow"))):
        predicted = predict(adapter, plan, "sdpa", rows)
        assert predicted is not None and (predicted.table.key.batch, predicted.table.key.runtime) == key
    assert predict(adapter, plan, "flex", 4) is None


# --------------------------------------------------------------------------------------------- the run that is timed


@torch.no_grad()
@pytest.mark.parametrize("guided", [True, False])
def test_runs_are_those_of_a_sampler(guided: bool) -> None:
    """Bit for bit what :class:`Trajectory` does with the same labels and noise."""
    adapter: Any = adapt(small_pipeline().transformer)
    given = adapter.example(4, 16)
    layout = adapter.guided_layout if guided else Layout.NONE
    ours = Sampling(adapter, adapter.read_call((), given), given, layout, usual_scheduler())
    labels = given["class_labels"][: 2 if guided else 4].tolist()
    theirs = Trajectory(
        Denoiser(adapter.model, label_condition(adapter.model, labels), 4.0 if guided else 1.0),
        usual_scheduler(),
        5,
        0,
        range(len(labels)),
    )
    ours.begin(5)
    ours._latents = theirs.latents
    ours.advance(5)
    for step in range(5):
        theirs.advance(step, theirs.predict(step))
    assert torch.equal(ours._latents, theirs.latents)


def test_models_of_all_kinds_are_timed_and_left_as_they_were() -> None:
    models = (small_pixart_pipeline().transformer, small_native_dit())
    for model in models:
        adapter: Any = adapt(model)
        table = CostTable.of(adapter, 2, adapter.spec().tokens, "sdpa", repeats=1)
        assert table.overhead > 0 and set(table.microseconds) == set(TIMES) - {"call"}
        assert "forward" not in model.__dict__
