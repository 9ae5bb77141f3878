"""Places of stored tensors: what is stored is still there when it is read."""

from hypothesis import given
from hypothesis import strategies as st

from ditfastattn.arena import Arena, Place
from ditfastattn.cache import Cell, liveness, predicted_bytes
from plans import Method
from plans.forecast import feasible

F, C, W, B, A = Method.FULL, Method.ASC, Method.WA_RS, Method.WA_RS_ASC, Method.AST


@st.composite
def plans_of_columns(draw: st.DrawFn) -> list[tuple[Cell, ...]]:
    steps, layers = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    rest = st.lists(st.sampled_from(list(Method)), min_size=steps - 1, max_size=steps - 1)
    times = [float(steps - step) for step in range(steps)]
    skipped = draw(st.sets(st.integers(1, steps)))
    columns = [[A if step in skipped else m for step, m in enumerate((F, *draw(rest)))] for _ in range(layers)]
    return [liveness(feasible(column, times), times, skipped) for column in columns]


@given(plans_of_columns())
def test_every_read_finds_what_was_stored(cells: list[tuple[Cell, ...]]) -> None:
    arena = Arena.of(cells)
    memory: list[object] = [None] * arena.halves
    residuals: dict[int, object] = {}
    outputs: list[list[int]] = [[] for _ in cells]  # the steps whose outputs each layer holds, the last first

    def span(place: Place | None) -> range:
        assert place is not None
        assert place.offset + place.size <= arena.halves
        return range(place.offset, place.offset + place.size)

    for step in range(len(cells[0])):
        for layer, column in enumerate(cells):
            cell, places = column[step], arena.places[layer][step]
            if cell.free_outputs or cell.weights:  # else a cell of a skipped step, which nobody runs
                assert len(places.outputs) == cell.method.outputs_read <= len(outputs[layer])
                for place, stored_at in zip(places.outputs, outputs[layer], strict=False):
                    assert all(memory[i] == (layer, stored_at, "output") for i in span(place))
            if cell.method.windowed:
                assert all(memory[i] == residuals[layer] for i in span(places.residual))
            if cell.store_output:
                (place,) = places.outputs
                assert place.rows is cell.store_output
                outputs[layer] = [step, *outputs[layer][: cell.older]]
                for i in span(place):
                    memory[i] = (layer, step, "output")
            if cell.store_residual:
                residuals[layer] = (layer, step, "residual")
                for i in span(places.residual):
                    memory[i] = residuals[layer]
            outputs[layer] = outputs[layer][: len(outputs[layer]) - cell.free_outputs]


@given(plans_of_columns())
def test_it_is_hardly_larger_than_what_lives_at_once(cells: list[tuple[Cell, ...]]) -> None:
    at_once = max(predicted_bytes(cells, batch=2, row_bytes=1))  # in half batches of one row
    size = Arena.of(cells).nbytes(batch=2, row_bytes=1)
    assert at_once <= size <= 1.5 * at_once + 1


def test_places_are_used_again() -> None:
    cells = [liveness((F, A, F, A)), liveness((F, F, F, F))]
    arena = Arena.of(cells)
    assert arena.halves == 2
    assert arena.places[0][0] == arena.places[0][2]  # the steps do the same work, so they can share a graph
    assert arena.places[1][0].outputs == ()


def test_the_history_of_a_forecast_lies_side_by_side() -> None:
    arena = Arena.of([liveness((F, F, Method.AST_1, F, Method.AST_1), (9.0, 8.0, 7.0, 6.0, 5.0))])
    first, second, both, third, again = (places.outputs for places in arena.places[0])
    assert arena.halves == 4 and both == (*second, *first)
    assert third == first and again == (*third, *second)  # the oldest makes room for the new one


def test_a_half_takes_half() -> None:
    assert Arena.of([liveness((F, B, B))]).halves == 1
    assert Arena.of([liveness((F, W, B))]).halves == 2
    assert Arena.of([liveness((F, F))]).halves == 0
    assert Arena.of([liveness((F, A))]).nbytes(batch=3, row_bytes=10) == 40  # an odd batch has no halves
