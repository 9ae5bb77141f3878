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

    outputs: tuple[Place, ...] = ()  # the last first: those that are read, or the one that this step stores
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
        stored: dict[tuple[int, int], Place] = {}  # outputs, by layer and step
        residuals: dict[tuple[int, int], Place] = {}  # by layer and each step of their lives
        alive: list[tuple[int, Place]] = []  # (last step, place)
        halves = 0
        for life in sorted(_lifetimes(cells), key=lambda life: (life.first, -life.rows)):
            alive = [entry for entry in alive if entry[0] >= life.first]
            place = Place(_lowest_gap([place for _, place in alive], Place(0, life.rows).size), life.rows)
            alive.append((life.last, place))
            halves = max(halves, place.offset + place.size)
            if life.kind == "output":
                stored[life.layer, life.first] = place
            else:
                residuals |= {(life.layer, step): place for step in range(life.first, life.last + 1)}
        places = []
        for layer, column in enumerate(cells):
            found = []
            for step, (cell, outputs) in enumerate(zip(column, _outputs_at(column), strict=True)):
                touched = outputs if cell.method.reuses_output else [step] if cell.store_output else []
                found.append(StepPlaces(tuple(stored[layer, at] for at in touched), residuals.get((layer, step))))
            places.append(tuple(found))
        return cls(tuple(places), halves)

    def nbytes(self, batch: int, row_bytes: int) -> int:
        """Bytes for a batch of ``batch`` rows (both guidance branches), ``row_bytes`` = N * C * itemsize each."""
        return self.halves * _half(batch) * row_bytes


def _half(batch: int) -> int:
    """Rows of a half batch; an odd batch has no halves, so everything stored is whole: two such units hold it."""
    return batch // 2 + batch % 2


def _outputs_at(column: Sequence[Cell]) -> list[list[int]]:
    """Of each step, the steps whose outputs it reads, the last first."""
    found, held = [], list[int]()
    for step, cell in enumerate(column):
        found.append(held[: cell.method.outputs_read])
        if cell.store_output:
            held = [step, *held[: cell.older]]
        held = held[: len(held) - cell.free_outputs]
    return found


def _lifetimes(cells: Sequence[tuple[Cell, ...]]) -> list[_Lifetime]:
    found = []
    for layer, column in enumerate(cells):
        last_reads = {output: step for step, outputs in enumerate(_outputs_at(column)) for output in outputs}
        for step, cell in enumerate(column):
            if cell.store_output:
                found.append(_Lifetime(step, last_reads[step], layer, "output", cell.store_output))
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
