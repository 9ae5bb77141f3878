"""Liveness: every read finds what it needs, nothing is kept that nobody reads."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ditfastattn.cache import Cell, LayerCache, Rows, entering_at, liveness, predicted_bytes
from plans import Method
from plans.forecast import feasible, forecast_weights

F, C, W, B, A = Method.FULL, Method.ASC, Method.WA_RS, Method.WA_RS_ASC, Method.AST
A1, A2 = Method.AST_1, Method.AST_2


@st.composite
def columns_of(draw: st.DrawFn) -> tuple[tuple[Method, ...], tuple[float, ...], set[int]]:
    """A column, its timesteps (some equal, as in Heun's method), and steps that are skipped."""
    rest = draw(st.lists(st.sampled_from(list(Method)), max_size=30))
    times = tuple(sorted(draw(st.lists(st.integers(0, 999), min_size=len(rest) + 1, max_size=len(rest) + 1)))[::-1])
    skipped = draw(st.sets(st.integers(1, 30), max_size=5))
    column = [A if step in skipped else method for step, method in enumerate((F, *rest))]
    return feasible(column, times), times, skipped


@given(columns_of())
def test_every_read_finds_the_last_writes_and_nothing_else_is_held(
    drawn: tuple[tuple[Method, ...], tuple[float, ...], set[int]],
) -> None:
    column, times, skipped = drawn
    run = [step for step in range(len(column)) if step not in skipped]

    def read_by(step: int) -> list[int]:
        computed = [i for i in run if i < step and not column[i].reuses_output]
        return computed[::-1][: column[step].outputs_read]

    outputs: list[int] = []  # the steps whose outputs are held, the last first
    residual: int | None = None
    cells = liveness(column, times, skipped)
    for step in run:
        cell = cells[step]
        assert cell.method is column[step]
        if cell.method.reuses_output:
            read = read_by(step)
            assert outputs[: len(read)] == read and len(read) == cell.method.outputs_read
            if cell.method.forecasts:
                assert cell.weights == forecast_weights(times[step], [times[i] for i in read])
        if cell.method.windowed:
            last = max(i for i in run if i < step and column[i].refreshes_residual)
            assert residual == last
        if cell.store_output:
            assert cell.older == len(outputs)  # those that are held stay, all of them for later
            outputs = [step, *outputs]
        if cell.store_residual:
            residual = step
        outputs = outputs[: len(outputs) - cell.free_outputs]
        if cell.free_residual:
            residual = None
        # Held now means read later, a residual before it is written again.
        later = [i for i in run if i > step]
        assert set(outputs) == {i for reader in later for i in read_by(reader) if i <= step}
        until_refresh = []
        for i in later:
            if column[i].refreshes_residual:
                break
            until_refresh.append(column[i])
        assert (residual is not None) == any(method.windowed for method in until_refresh)
    assert all(cells[step] == Cell(A) for step in skipped if step < len(column))


def test_a_half_is_stored_where_only_the_half_is_read() -> None:
    assert liveness((F, B, B, F))[0].store_residual is Rows.CONDITIONAL_HALF
    assert liveness((F, B, W, F))[0].store_residual is Rows.WHOLE_BATCH
    assert liveness((F, C, W, F))[1].store_residual is Rows.CONDITIONAL_HALF
    assert liveness((F, C, A))[1].store_output is Rows.CONDITIONAL_HALF
    assert liveness((F, A))[0].store_output is Rows.WHOLE_BATCH
    assert liveness((F, F, C))[0].store_output is Rows.NOTHING


def test_predicted_bytes_counts_each_layer_from_store_to_last_read() -> None:
    cells = [liveness((F, A, A, F)), liveness((F, B, F, F))]
    assert predicted_bytes(cells, batch=4, row_bytes=10) == [40 + 20, 40 + 20, 40, 0]


def test_predicted_bytes_counts_a_history() -> None:
    times = (9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0)
    cells = [liveness((F, C, F, A2, F, A1, A), times)]
    assert predicted_bytes(cells, batch=4, row_bytes=10) == [40, 60, 100, 100, 80, 80, 40]
    assert predicted_bytes([liveness((F, A, A, F), skipped={1, 2})], batch=4, row_bytes=10) == [0] * 4


def test_a_store_drops_what_no_later_step_reads() -> None:
    cache = LayerCache()
    tensors = [torch.full((2,), float(i)) for i in range(4)]
    cache.keep(tensors[0], 0)
    cache.keep(tensors[1], 1)
    cache.keep(tensors[2], 2)
    assert [float(output[0]) for output in cache.outputs] == [2, 1, 0] and cache.nbytes() == 24
    cache.free(Cell(A2, free_outputs=1))
    assert [float(output[0]) for output in cache.outputs] == [2, 1]
    cache.keep(tensors[3], 0)  # as a calibration stores, which keeps no history
    assert cache.outputs == (tensors[3],)
    cache.free(Cell(A, free_outputs=1))
    assert cache.outputs == () and cache.nbytes() == 0


@given(columns_of(), st.integers(0, 29))
def test_a_run_that_begins_in_the_middle_begins_full(
    drawn: tuple[tuple[Method, ...], tuple[float, ...], set[int]], step: int
) -> None:
    column, times, _ = drawn
    step = min(step, len(column) - 1)
    entered = entering_at(column, step, times)
    assert entered[0] is F and len(entered) == len(column) - step
    paper = [(before, after) for before, after in zip(column[step + 1 :], entered[1:], strict=True)]
    assert all(after is before or (before.forecasts and after.reuses_output) for before, after in paper)
    liveness(entered, times[step:])  # and that is a valid column of its own
