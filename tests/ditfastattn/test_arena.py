"""Places of stored tensors: what is stored is still there when it is read."""

from hypothesis import given
from hypothesis import strategies as st

from ditfastattn.arena import Arena, Place
from ditfastattn.cache import Cell, liveness, predicted_bytes
from plans import Method

F, C, W, B, A = Method.FULL, Method.ASC, Method.WA_RS, Method.WA_RS_ASC, Method.AST


@st.composite
def plans_of_columns(draw: st.DrawFn) -> list[tuple[Cell, ...]]:
    steps, layers = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    rest = st.lists(st.sampled_from(list(Method)), min_size=steps - 1, max_size=steps - 1)
    return [liveness((F, *draw(rest))) for _ in range(layers)]


@given(plans_of_columns())
def test_every_read_finds_what_was_stored(cells: list[tuple[Cell, ...]]) -> None:
    arena = Arena.of(cells)
    memory: list[object] = [None] * arena.halves
    stored: dict[tuple[int, str], object] = {}

    def span(place: Place | None) -> range:
        assert place is not None
        assert place.offset + place.size <= arena.halves
        return range(place.offset, place.offset + place.size)

    for step in range(len(cells[0])):
        for layer, column in enumerate(cells):
            cell, places = column[step], arena.places[layer][step]
            if cell.method is A:
                assert all(memory[i] == stored[layer, "output"] for i in span(places.output))
            if cell.method.windowed:
                assert all(memory[i] == stored[layer, "residual"] for i in span(places.residual))
            for kind, rows, place in (
                ("output", cell.store_output, places.output),
                ("residual", cell.store_residual, places.residual),
            ):
                if rows:
                    assert place is not None and place.rows is rows
                    stored[layer, kind] = (layer, step, kind)
                    for i in span(place):
                        memory[i] = (layer, step, kind)


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
    assert arena.places[1][0].output is None


def test_a_half_takes_half() -> None:
    assert Arena.of([liveness((F, B, B))]).halves == 1
    assert Arena.of([liveness((F, W, B))]).halves == 2
    assert Arena.of([liveness((F, F))]).halves == 0
    assert Arena.of([liveness((F, A))]).nbytes(batch=3, row_bytes=10) == 40  # an odd batch has no halves
