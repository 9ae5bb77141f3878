"""MACs against counting by hand: masks written out pair by pair, columns walked step by step."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_examples import COND_FIRST, DIT_12, NO_GUIDANCE, STDIT_28, dpm_solver, golden, synthetic

from plans import Method, Plan, Window
from plans.macs import full_macs, method_macs, plan_macs, shares, store_macs


def _mask(window: Window, tokens: int) -> list[list[bool]]:
    """mask[query][key], the definition in words: keys from left before to right after the query."""
    return [[-window.left <= key - query <= window.right for key in range(tokens)] for query in range(tokens)]


@given(left=st.integers(0, 14), right=st.integers(0, 14), tokens=st.integers(1, 12))
def test_window_pairs_are_the_pairs_of_the_mask(left: int, right: int, tokens: int) -> None:
    window = Window(left=left, right=right)
    assert window.pairs(tokens) == sum(sum(row) for row in _mask(window, tokens))


def test_window_pairs_at_the_extremes() -> None:
    assert Window(left=0, right=0).pairs(1024) == 1024
    assert Window(left=1024, right=1024).pairs(1024) == 1024**2
    assert Window(left=1023, right=0).pairs(1024) == 1024 * 1025 // 2
    with pytest.raises(ValueError, match="at least 1 token"):
        Window(left=0, right=0).pairs(0)


@cache
def _visible(window: Window, tokens: int) -> int:
    return sum(sum(row) for row in _mask(window, tokens))


def _by_hand(method: Method, tokens: int, width: int, window: Window, module: bool) -> float:
    """Count the multiplications of each matrix product of both guidance halves, then average."""
    halves = (
        0
        if method in (Method.AST, Method.AST_1, Method.AST_2)
        else 1
        if method in (Method.ASC, Method.WA_RS_ASC)
        else 2
    )
    pairs = _visible(window, tokens) if method in (Method.WA_RS, Method.WA_RS_ASC) else tokens * tokens
    core = sum(width for _ in ("q k^T", "p v")) * pairs
    projections = sum(tokens * width * width for _ in ("q", "k", "v", "out"))
    return halves * (core + (projections if module else 0)) / 2


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize(("tokens", "width", "left", "right"), [(16, 8, 2, 2), (17, 3, 5, 0), (5, 1, 0, 5)])
def test_method_macs(method: Method, tokens: int, width: int, left: int, right: int) -> None:
    window = Window(left=left, right=right)
    for convention in ("module", "core"):
        macs = method_macs(method, tokens=tokens, width=width, window=window, convention=convention)  # type: ignore[arg-type]
        assert macs == _by_hand(method, tokens, width, window, convention == "module")


@pytest.mark.parametrize(
    ("tokens", "wa_rs", "both"), [(1024, 77, 38), (4096, 51, 26), (16384, 33, 16)]
)  # DiTFastAttn, Table 2
def test_the_default_window_gives_the_papers_table(tokens: int, wa_rs: int, both: int) -> None:
    def percent(method: Method) -> float:
        window = Window.default(tokens)
        macs = [method_macs(m, tokens=tokens, width=1152, window=window) for m in (method, Method.FULL)]
        return 100 * macs[0] / macs[1]

    assert percent(Method.WA_RS) == pytest.approx(wa_rs, abs=0.55)
    assert percent(Method.WA_RS_ASC) == pytest.approx(both, abs=0.55)
    assert percent(Method.ASC) == 50
    assert percent(Method.AST) == 0


def test_dit_xl_2_at_512_pixels_is_mostly_projections() -> None:
    core = method_macs(Method.FULL, tokens=1024, width=1152, window=Window.default(1024), convention="core")
    module = method_macs(Method.FULL, tokens=1024, width=1152, window=Window.default(1024))
    assert (core, module - core) == (2 * 1024**2 * 1152, 4 * 1024 * 1152**2)


def _stores_by_walking(column: tuple[Method, ...]) -> list[int]:
    """How many halves of the window core each step computes only to store its residual, from the readers' side."""
    stores = [0] * len(column)
    for reader, method in enumerate(column):
        if not method.windowed:
            continue
        refresh = max(step for step in range(reader) if column[step] in (Method.FULL, Method.ASC))
        wanted = 2 if method is Method.WA_RS else 1
        there = 2 if column[refresh] is Method.FULL else 1
        stores[refresh] = max(stores[refresh], min(wanted, there))
    return stores


def test_residual_store_of_every_short_column() -> None:
    window = Window(left=3, right=1)
    half = window.pairs(16) * 4  # 2 P C for two halves, averaged per row: P C for each half
    for rest in product(Method, repeat=4):
        column = (Method.FULL, *rest)
        found = [store_macs(column, step, tokens=16, width=4, window=window) for step in range(5)]
        assert found == [half * halves for halves in _stores_by_walking(column)]


@pytest.mark.parametrize("name", sorted(name for name, plan in golden().items() if len(plan.sites) == 1))
@pytest.mark.parametrize("convention", ["module", "core"])
def test_plan_macs_add_up(name: str, convention: str) -> None:
    plan = golden()[name]
    macs = plan_macs(plan, convention)  # type: ignore[arg-type]
    tokens, width = plan.model.tokens, plan.model.heads * plan.model.head_dim
    for step, row in enumerate(plan.methods):
        cost = sum(_by_hand(method, tokens, width, plan.window, convention == "module") for method in row)
        assert macs.steps[step] == cost
        assert macs.step_percents[step] == pytest.approx(100 * cost / macs.full_step)
    everything = _by_hand(Method.FULL, tokens, width, plan.window, convention == "module")
    assert macs.full == everything * plan.steps * plan.layers
    assert full_macs(plan.model, convention) == everything  # type: ignore[arg-type]
    assert macs.percent == pytest.approx(100 * sum(macs.steps) / macs.full)
    halves = sum(sum(_stores_by_walking(plan.column(layer))) for layer in range(plan.layers))
    assert macs.residual_store == halves * plan.window.pairs(tokens) * width
    assert macs.store_percent == pytest.approx(100 * macs.residual_store / macs.full)


def test_full_is_a_hundred_percent_and_stores_nothing() -> None:
    macs = plan_macs(golden()["full-12x4"])
    assert (macs.percent, macs.residual_store) == (100, 0)
    assert macs.step_percents == (100,) * 4


def test_percent_does_not_depend_on_guidance_without_shared_methods() -> None:
    without = synthetic(DIT_12, dpm_solver(20), NO_GUIDANCE)
    with_guidance = Plan(**dict(without) | {"guidance": COND_FIRST})
    assert plan_macs(without) == plan_macs(with_guidance)


def test_shares_are_percents_of_the_cells() -> None:
    plan = synthetic(STDIT_28, dpm_solver(10), COND_FIRST)
    found = shares(plan)
    assert list(found) == list(Method)
    assert sum(found.values()) == pytest.approx(100)
    assert found[Method.FULL] == 100 * sum(row.count(Method.FULL) for row in plan.methods) / 280
