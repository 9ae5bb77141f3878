"""What is kept, from which step to which: computed from the plan before sampling starts.

Two things can be reused: a layer's attention *output* (by AST) and the *residual* O_full - O_window (by WA_RS and
WA_RS_ASC). Both are stored only by the steps that a later step reads, in half size where only the conditional half is
read or computed, and freed after the last reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from plans import Method


class Rows(IntEnum):
    """How much of the batch is stored."""

    NOTHING = 0
    CONDITIONAL_HALF = 1
    WHOLE_BATCH = 2


@dataclass(frozen=True)
class Cell:
    """What one layer does at one step."""

    method: Method
    store_output: Rows = Rows.NOTHING
    store_residual: Rows = Rows.NOTHING
    free_output: bool = False  # after this step nobody reads it
    free_residual: bool = False


def liveness(column: Sequence[Method]) -> tuple[Cell, ...]:
    """The cells of one layer, from its methods at steps 0..T-1.

    Raises:
        ValueError: step 0 is not FULL, so that a later step could read what was never stored.
    """
    if column[0] is not Method.FULL:
        raise ValueError(f"step 0 must be FULL, got {column[0]}: nothing is stored before it")
    return tuple(
        Cell(
            method=method,
            store_output=_output_rows(column, step),
            store_residual=_residual_rows(column, step),
            free_output=_last_reader(column, step, reads=_reads_output, writes=_writes_output),
            free_residual=_last_reader(column, step, reads=_reads_residual, writes=_writes_residual),
        )
        for step, method in enumerate(column)
    )


def entering_at(column: Sequence[Method], step: int) -> tuple[Method, ...]:
    """The methods from ``step`` on for a run that begins there: its first step is FULL, as step 0 is."""
    return (Method.FULL, *column[step + 1 :])


def _reads_output(method: Method) -> bool:
    return method.reuses_output


def _writes_output(method: Method) -> bool:
    return not method.reuses_output


def _reads_residual(method: Method) -> bool:
    return method.windowed


def _writes_residual(method: Method) -> bool:
    return method.refreshes_residual


def _output_rows(column: Sequence[Method], step: int) -> Rows:
    method = column[step]
    if method.reuses_output or step + 1 == len(column) or not column[step + 1].reuses_output:
        return Rows.NOTHING
    return Rows.CONDITIONAL_HALF if method.shares_guidance else Rows.WHOLE_BATCH


def _residual_rows(column: Sequence[Method], step: int) -> Rows:
    if not column[step].refreshes_residual:
        return Rows.NOTHING
    readers = []
    for later in column[step + 1 :]:
        if later.refreshes_residual:
            break
        if later.windowed:
            readers.append(later)
    if not readers:
        return Rows.NOTHING
    half = column[step].shares_guidance or all(reader.shares_guidance for reader in readers)
    return Rows.CONDITIONAL_HALF if half else Rows.WHOLE_BATCH


def _last_reader(column: Sequence[Method], step: int, reads, writes) -> bool:  # type: ignore[no-untyped-def]
    """Whether ``step`` reads what is stored and no later step does before it is written anew."""
    if not reads(column[step]):
        return False
    for later in column[step + 1 :]:
        if reads(later):
            return False
        if writes(later):
            return True
    return True


def predicted_bytes(cells: Sequence[tuple[Cell, ...]], batch: int, row_bytes: int) -> list[int]:
    """Bytes held at the end of each step's work, before anything is freed.

    Args:
        cells: [layer][step].
        batch: rows of a transformer call, both guidance branches counted.
        row_bytes: bytes of one row of an attention output, N * C * itemsize; a residual is as large.
    """
    size = {Rows.NOTHING: 0, Rows.CONDITIONAL_HALF: batch // 2 * row_bytes, Rows.WHOLE_BATCH: batch * row_bytes}
    held = [[0, 0] for _ in cells]  # output, residual of each layer
    totals = []
    for step in range(len(cells[0])):
        for layer, column in enumerate(cells):
            if column[step].store_output:
                held[layer][0] = size[column[step].store_output]
            if column[step].store_residual:
                held[layer][1] = size[column[step].store_residual]
        totals.append(sum(output + residual for output, residual in held))
        for layer, column in enumerate(cells):
            if column[step].free_output:
                held[layer][0] = 0
            if column[step].free_residual:
                held[layer][1] = 0
    return totals


@dataclass
class LayerCache:
    """What one layer holds now. ``output`` (rows, N, C) after the out-projection, ``residual`` (rows, N, H, D)."""

    output: Tensor | None = None
    residual: Tensor | None = None

    def nbytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in (self.output, self.residual) if t is not None)

    def clear(self) -> None:
        self.output = self.residual = None
