"""Liveness: every read finds what it needs, nothing is kept that nobody reads."""

from hypothesis import given
from hypothesis import strategies as st

from ditfastattn.cache import Rows, entering_at, liveness, predicted_bytes
from plans import Method

F, C, W, B, A = Method.FULL, Method.ASC, Method.WA_RS, Method.WA_RS_ASC, Method.AST

columns = st.lists(st.sampled_from(list(Method)), max_size=30).map(lambda rest: (Method.FULL, *rest))


@given(columns)
def test_every_read_finds_the_last_write_and_nothing_else_is_held(column: tuple[Method, ...]) -> None:
    output: int | None = None  # the step whose output is held
    residual: int | None = None
    for step, cell in enumerate(liveness(column)):
        if cell.method is A:
            last = max(i for i in range(step) if column[i] is not A)
            assert output == last
        if cell.method.windowed:
            last = max(i for i in range(step) if column[i].refreshes_residual)
            assert residual == last
        if cell.store_output:
            output = step
        if cell.store_residual:
            residual = step
        if cell.free_output:
            output = None
        if cell.free_residual:
            residual = None
        # Held now means read later, before it is written again.
        later = column[step + 1 :]
        assert (output is not None) == (bool(later) and later[0] is A)
        until_refresh = []
        for method in later:
            if method.refreshes_residual:
                break
            until_refresh.append(method)
        assert (residual is not None) == any(method.windowed for method in until_refresh)


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


@given(columns, st.integers(0, 29))
def test_a_run_that_begins_in_the_middle_begins_full(column: tuple[Method, ...], step: int) -> None:
    step = min(step, len(column) - 1)
    entered = entering_at(column, step)
    assert entered[0] is F and entered[1:] == column[step + 1 :] and len(entered) == len(column) - step
    liveness(entered)  # and that is a valid column of its own
