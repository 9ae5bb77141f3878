"""Where each stored tensor of a plan lies, decided before sampling: one block of memory, reused as tensors die.

A tensor is stored at one step and read until a later one (:func:`ditfastattn.cache.liveness`). Two tensors whose steps
overlap get different places, others may share one. Places never depend on the input, so a captured step finds what an
earlier captured step stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ditfastattn.cache import Cell, Rows


@dataclass(frozen=True)
class Place:
    """A stored tensor: ``rows`` of the batch, ``offset`` in half batches from the arena's beginning."""

    offset: int
    rows: Rows

    @property
    def size(self) -> int:
        """In half batches."""
        return 2 if self.rows is Rows.WHOLE_BATCH else 1


@dataclass(frozen=True)
class StepPlaces:
    """What one layer finds and leaves at one step."""

    output: Place | None = None  # read by AST, or where this step stores
    residual: Place | None = None


@dataclass(frozen=True)
class _Lifetime:
    first: int  # the step that stores
    last: int  # the last step that reads
    layer: int
    kind: str
    rows: Rows


@dataclass(frozen=True)
class Arena:
    """Places of all tensors: ``places[layer][step]``; ``halves`` is the arena's size in half batches."""

    places: tuple[tuple[StepPlaces, ...], ...]
    halves: int

    @classmethod
    def of(cls, cells: Sequence[tuple[Cell, ...]]) -> "Arena":
        """The arena of ``cells[layer][step]``: lifetimes by their beginning, each at the lowest free offset."""
        steps = len(cells[0])
        table: list[list[dict[str, Place]]] = [[{} for _ in range(steps)] for _ in cells]
        alive: list[tuple[int, Place]] = []  # (last step, place)
        halves = 0
        for life in sorted(_lifetimes(cells), key=lambda life: (life.first, -life.rows)):
            alive = [entry for entry in alive if entry[0] >= life.first]
            place = Place(_lowest_gap([place for _, place in alive], Place(0, life.rows).size), life.rows)
            alive.append((life.last, place))
            halves = max(halves, place.offset + place.size)
            for step in range(life.first, life.last + 1):
                table[life.layer][step][life.kind] = place
        return cls(tuple(tuple(StepPlaces(**cell) for cell in column) for column in table), halves)

    def nbytes(self, batch: int, row_bytes: int) -> int:
        """Bytes for a batch of ``batch`` rows (both guidance branches), ``row_bytes`` = N * C * itemsize each."""
        return self.halves * _half(batch) * row_bytes


def _half(batch: int) -> int:
    """Rows of a half batch; an odd batch has no halves, so everything stored is whole: two such units hold it."""
    return batch // 2 + batch % 2


def _lifetimes(cells: Sequence[tuple[Cell, ...]]) -> list[_Lifetime]:
    found = []
    for layer, column in enumerate(cells):
        for step, cell in enumerate(column):
            if cell.store_output:
                last = next(s for s in range(step + 1, len(column)) if column[s].free_output)
                found.append(_Lifetime(step, last, layer, "output", cell.store_output))
            if cell.store_residual:
                last = next(s for s in range(step + 1, len(column)) if column[s].free_residual)
                found.append(_Lifetime(step, last, layer, "residual", cell.store_residual))
    return found


def _lowest_gap(taken: list[Place], size: int) -> int:
    offset = 0
    for place in sorted(taken, key=lambda place: place.offset):
        if place.offset - offset >= size:
            break
        offset = max(offset, place.offset + place.size)
    return offset
