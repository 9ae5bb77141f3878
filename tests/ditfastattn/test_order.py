"""Orders of tokens: permutations that keep neighbours together, and plans that follow them without a trace outside."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from block_formula import Formula, band
from hypothesis import given
from hypothesis import strategies as st
from small_models import full_plan, random_plan, sample, small_pipeline, small_transformer

import ditfastattn
from ditfastattn.errors import StepError
from ditfastattn.layout import Layout
from ditfastattn.order import Ordering, hilbert_curve, inverse, order_for, permutation, tile_side
from plans import Method, Plan, TokenOrder, Window
from plans.method import TOKEN_ORDERS

grids = st.tuples(st.integers(1, 24), st.integers(1, 24))
windows = st.builds(Window, left=st.integers(0, 90), right=st.integers(0, 90))
PER_IMAGE = frozenset({"timestep"})


def reordered(plan: Plan, order: TokenOrder) -> Plan:
    return Plan(**{name: getattr(plan, name) for name in Plan.model_fields} | {"token_order": order})


def call_at(transformer: Any, plan: Plan, step: int, **more: Any) -> torch.Tensor:
    """Model output (2, C, 8, 8) of a guided call at a step of the plan, on the same noise every time."""
    dtype = next(transformer.parameters()).dtype
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)
    times = torch.full((2,), int(plan.sampler.timesteps[step]))
    labels = torch.tensor([1, 1000])
    return transformer(noise.expand(2, -1, -1, -1), timestep=times, class_labels=labels, **more).sample


# ---------------------------------------------------------------------------------------------------- permutations


@given(st.sampled_from(TOKEN_ORDERS), grids, windows)
def test_an_order_is_a_permutation_and_its_inverse_undoes_it(order: TokenOrder, grid: Any, window: Window) -> None:
    index = permutation(order, grid, window)
    raster = torch.arange(grid[0] * grid[1])
    assert index.dtype == torch.int64 and torch.equal(index.sort().values, raster)
    assert torch.equal(index[inverse(index)], raster) and torch.equal(inverse(index)[index], raster)


@given(grids)
def test_hilbert_steps_to_a_neighbour(grid: tuple[int, int]) -> None:
    cells = list(hilbert_curve(*grid))
    steps = [(abs(a - c), abs(b - d)) for (a, b), (c, d) in pairwise(cells)]
    diagonal = steps.count((1, 1))
    assert steps.count((0, 1)) + steps.count((1, 0)) + diagonal == len(steps)
    odd_and_even = max(grid) % 2 == 1 and min(grid) % 2 == 0
    assert diagonal <= odd_and_even


@pytest.mark.parametrize("side", [2, 8, 32])
def test_hilbert_fills_one_quarter_of_a_square_after_the_other(side: int) -> None:
    cells = list(hilbert_curve(side, side))
    for quarter in range(4):
        part = cells[quarter * side * side // 4 : (quarter + 1) * side * side // 4]
        assert len({(row >= side // 2, column >= side // 2) for row, column in part}) == 1


@given(grids, windows)
def test_tiles_are_contiguous_and_row_by_row(grid: tuple[int, int], window: Window) -> None:
    side, width = tile_side(window), grid[1]
    tokens = permutation("tile", grid, window).tolist()
    placed = [(token // width // side, token % width // side, token) for token in tokens]  # tile row, tile column
    assert placed == sorted(placed)


@pytest.mark.parametrize(
    ("left", "right", "side"), [(0, 0, 1), (1, 0, 1), (1, 1, 2), (2, 2, 2), (16, 16, 8), (32, 32, 8), (33, 32, 16)]
)
def test_tile_side(left: int, right: int, side: int) -> None:
    assert tile_side(Window(left=left, right=right)) == side


def test_the_orders_of_a_small_grid() -> None:
    window = Window(left=2, right=2)
    assert permutation("raster", (2, 4), window).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert permutation("tile", (2, 4), window).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert permutation("hilbert", (2, 4), window).tolist() == [0, 4, 5, 1, 2, 6, 7, 3]


@pytest.mark.parametrize(("order", "grid", "words"), [("tile", (0, 4), "no tokens"), ("spiral", (2, 2), "'spiral'")])
def test_what_is_no_order(order: Any, grid: tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        permutation(order, grid, Window(left=1, right=1))


# ---------------------------------------------------------------------------------------------------------- a run


def test_entering_and_leaving() -> None:
    ordering = Ordering("hilbert", Window(left=2, right=2), PER_IMAGE)
    hidden = torch.randn(3, 8, 5)
    ordering.fit((2, 4), hidden.device)
    inside = ordering.enter(hidden, timestep=1, mask=None)
    assert torch.equal(inside, hidden[:, [0, 4, 5, 1, 2, 6, 7, 3]])
    assert torch.equal(ordering.leave(inside), hidden)
    index = ordering._index
    ordering.fit((2, 4), hidden.device)
    assert ordering._index is index  # a captured graph may read it
    ordering.fit((4, 2), hidden.device)
    assert not torch.equal(ordering._index, index)


def test_raster_touches_nothing() -> None:
    ordering = Ordering("raster", Window(left=2, right=2), frozenset())
    hidden = torch.randn(1, 4, 2)
    ordering.fit((2, 2), hidden.device)
    assert ordering.leave(ordering.enter(hidden, 1, other=2)) is hidden


@pytest.mark.parametrize(
    ("others", "named", "words"), [((torch.ones(8),), {}, "argument 1"), ((), {"rope": 1}, "rope")]
)
def test_inputs_that_may_be_per_token_are_refused(others: Any, named: Any, words: str) -> None:
    ordering = Ordering("tile", Window(left=2, right=2), PER_IMAGE)
    ordering.fit((2, 4), torch.device("cpu"))
    with pytest.raises(StepError, match=f"also take {words}, which would stay in raster order"):
        ordering.enter(torch.randn(1, 8, 2), *others, timestep=1, **named)


def test_a_call_with_another_input_of_the_blocks_is_refused() -> None:
    pipe = small_pipeline()
    plan = reordered(random_plan(pipe, steps=3), "hilbert")
    with ditfastattn.apply(pipe.transformer, plan), pytest.raises(StepError, match="cross_attention_kwargs"):
        call_at(pipe.transformer, plan, 0, cross_attention_kwargs={"bias": torch.ones(16)})


def test_only_a_window_needs_an_order() -> None:
    assert order_for("tile", [Method.FULL, Method.WA_RS_ASC]) == "tile"
    assert order_for("tile", [Method.FULL, Method.ASC, Method.AST]) == "raster"


@pytest.mark.parametrize("order", ["tile", "hilbert"])
def test_without_a_windowed_method_an_order_changes_not_a_bit(order: TokenOrder) -> None:
    pipe = small_pipeline()
    plain = sample(pipe)
    full = full_plan(pipe)
    rows = [[Method.FULL] * 4, *([Method.ASC, Method.AST, Method.FULL, Method.AST] for _ in range(7))]
    with ditfastattn.apply(pipe, reordered(full, order)):
        assert torch.equal(sample(pipe), plain)
    with ditfastattn.apply(pipe, full.with_methods(rows)):
        raster = sample(pipe)
    with ditfastattn.apply(pipe, reordered(full.with_methods(rows), order)):
        assert torch.equal(sample(pipe), raster)


@pytest.mark.parametrize("order", TOKEN_ORDERS)
@torch.no_grad()
def test_a_plan_equals_the_formula_with_the_permuted_mask_in_raster_order(order: TokenOrder) -> None:
    """Whole model calls in float64; the formula never permutes a token, it knows who sees whom."""
    methods = [Method.FULL, Method.WA_RS, Method.WA_RS_ASC, Method.AST]
    window = Window(left=3, right=1)
    pipe = small_pipeline(layers=2)
    pipe.transformer.double()
    plan = full_plan(pipe, steps=4).with_methods([[method] * 2 for method in methods])
    plan = reordered(Plan(**dict(plan) | {"window": window}), order)
    with ditfastattn.apply(pipe.transformer, plan):
        ours = [call_at(pipe.transformer, plan, step) for step in range(4)]

    plain = small_transformer(layers=2).double()
    places = inverse(permutation(order, (4, 4), window)).tolist()
    current: list[Method] = []

    def run_by(formula: Formula) -> Any:
        return lambda hidden, *, timestep, class_labels, **_: formula(hidden, current[-1], timestep, class_labels)

    for block in plain.transformer_blocks:
        block.forward = run_by(Formula(block, Layout.COND_FIRST, band(window, places)))
    for step, method in enumerate(methods):
        current.append(method)
        torch.testing.assert_close(ours[step], call_at(plain, plan, step), rtol=1e-9, atol=1e-9)

    with ditfastattn.apply(pipe.transformer, reordered(plan, "raster")):  # another order is another result
        raster = [call_at(pipe.transformer, plan, step) for step in range(4)]
    same = [torch.allclose(a, b, rtol=1e-6) for a, b in zip(ours, raster, strict=True)]
    assert same == ([True] * 4 if order == "raster" else [True, False, False, False])
