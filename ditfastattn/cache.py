"""What is kept, from which step to which: computed from the plan before sampling starts.

Two things can be reused: a layer's *output* (by AST, and by its forecasts together with outputs before it) and the
*residual* O_full - O_window (by WA_RS and WA_RS_ASC). Both are stored only by the steps that a later step reads, in
half size where only the conditional half is read or computed, and freed after the last reader.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from plans import Method
from plans.forecast import feasible, forecast_weights


class Rows(IntEnum):
    """How much of the batch is stored."""

    NOTHING = 0
    CONDITIONAL_HALF = 1
    WHOLE_BATCH = 2


@dataclass(frozen=True)
class Cell:
    """What one layer of a site does at one step.

    An output that is stored takes the place of the last one; the ``older`` ones before it stay beside it for forecasts.
    ``weights``: of a forecast, for the last computed output and those before it, in this order.
    """

    method: Method
    store_output: Rows = Rows.NOTHING
    store_residual: Rows = Rows.NOTHING
    older: int = 0
    free_outputs: int = 0  # how many, the oldest first: after this step nobody reads them
    free_residual: bool = False
    weights: tuple[float, ...] = ()


def liveness(
    column: Sequence[Method], timesteps: Sequence[float] | None = None, skipped: Container[int] = ()
) -> tuple[Cell, ...]:
    """The cells of one layer, from its methods at steps 0..T-1.

    Args:
        timesteps: of the steps; without them forecasts get no weights, and cannot be computed.
        skipped: steps in which the layer is not run at all, whatever its method.

    Raises:
        ValueError: step 0 is not FULL, so that a later step could read what was never stored.
    """
    if column[0] is not Method.FULL:
        raise ValueError(f"step 0 must be FULL, got {column[0]}: nothing is stored before it")
    run = [step for step in range(len(column)) if step not in skipped]
    methods = [column[step] for step in run]
    reads = [_read_by(methods, i) for i in range(len(run))]
    # Outputs die in the order of their steps: who reads one reads all those after it, too.
    last_reads = {output: i for i, outputs in enumerate(reads) for output in outputs}
    alive: list[int] = []  # outputs that are held, by the place of their step in ``run``
    cells = {}
    for i, method in enumerate(methods):
        rows, older, freed = Rows.NOTHING, 0, 0
        weights: tuple[float, ...] = ()
        if i in last_reads:
            rows = Rows.CONDITIONAL_HALF if method.shares_guidance else Rows.WHOLE_BATCH
            older = len(alive)
            alive.append(i)
        elif method.reuses_output:
            freed = sum(last_reads[output] == i for output in alive)
            alive = alive[freed:]
        if method.forecasts and timesteps is not None:
            weights = forecast_weights(timesteps[run[i]], [timesteps[run[output]] for output in reads[i]])
        cells[run[i]] = Cell(
            method=method,
            store_output=rows,
            store_residual=_residual_rows(methods, i),
            older=older,
            free_outputs=freed,
            free_residual=_last_residual_reader(methods, i),
            weights=weights,
        )
    return tuple(cells.get(step, Cell(method)) for step, method in enumerate(column))


def entering_at(column: Sequence[Method], step: int, timesteps: Sequence[float] | None = None) -> tuple[Method, ...]:
    """The methods from ``step`` on for a run that begins there: its first step is FULL, as step 0 is.

    A forecast that reaches back further is of the highest order that the run has outputs for.
    """
    entered = (Method.FULL, *column[step + 1 :])
    return entered if timesteps is None else feasible(entered, timesteps[step:])


def _read_by(methods: Sequence[Method], i: int) -> list[int]:
    """The steps whose outputs a step reads, the last first."""
    found: list[int] = []
    for j in range(i - 1, -1, -1):
        if len(found) == methods[i].outputs_read:
            break
        if not methods[j].reuses_output:
            found.append(j)
    return found


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


def _last_residual_reader(column: Sequence[Method], step: int) -> bool:
    """Whether ``step`` reads the stored residual and no later step does before it is written anew."""
    if not column[step].windowed:
        return False
    for later in column[step + 1 :]:
        if later.windowed:
            return False
        if later.refreshes_residual:
            return True
    return True


def predicted_bytes(cells: Sequence[tuple[Cell, ...]], batch: int, row_bytes: int) -> list[int]:
    """Bytes held at the end of each step's work, before anything is freed.

    Args:
        cells: [layer][step].
        batch: rows of a transformer call, both guidance branches counted.
        row_bytes: bytes of one row of an output, N * C * itemsize; a residual is as large.
    """
    size = {Rows.NOTHING: 0, Rows.CONDITIONAL_HALF: batch // 2 * row_bytes, Rows.WHOLE_BATCH: batch * row_bytes}
    totals = [0] * len(cells[0])
    for column in cells:
        outputs: list[int] = []  # the oldest first
        residual = 0
        for step, cell in enumerate(column):
            if cell.store_output:
                outputs.append(size[cell.store_output])
            if cell.store_residual:
                residual = size[cell.store_residual]
            totals[step] += sum(outputs) + residual
            del outputs[: cell.free_outputs]
            if cell.free_residual:
                residual = 0
    return totals


@dataclass
class LayerCache:
    """What one layer holds now. ``output`` (rows, N, C) after the out-projection, ``residual`` (rows, N, H, D).

    ``older``: the outputs computed before ``output``, the last first. Of an MLP, outputs are those before its gate; of
    the whole model, those that the sampler gets.
    """

    output: Tensor | None = None
    residual: Tensor | None = None
    older: tuple[Tensor, ...] = ()

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The last output first."""
        return () if self.output is None else (self.output, *self.older)

    def keep(self, output: Tensor, older: int) -> None:
        """Holds ``output``, and of those before it as many as ``older``."""
        self.older, self.output = self.outputs[:older], output

    def free(self, cell: Cell) -> None:
        """Drops what nobody reads after this cell's step."""
        left = self.outputs[: len(self.outputs) - cell.free_outputs]
        self.output, self.older = (left[0], left[1:]) if left else (None, ())
        if cell.free_residual:
            self.residual = None

    def nbytes(self) -> int:
        held = (*self.outputs, self.residual)
        return sum(t.untyped_storage().nbytes() for t in held if t is not None)

    def clear(self) -> None:
        self.output = self.residual = None
        self.older = ()
