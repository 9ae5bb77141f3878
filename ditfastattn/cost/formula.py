"""What a layer's self-attention costs by formula: multiplications and bytes, for every method.

MACs are those of ``plans.macs`` (two conventions, "module" with the projections, the paper's, and "core" without),
for a whole batch, and with the residual that a step stores. Bytes are the least that must move: every operation reads
each operand once and writes its result once, and keeps nothing for the next. An operation is a projection (Q, K and V
are three; weights and bias are read), an attention core (q, k, v read; a stored residual by its epilogue), the residual
of a step that stores it (q, k, v and the full output read again), and the copy of a shared half. The gate that adds the
attention output to the hidden states reads it whatever the method, so it is not counted; keeping an output costs
nothing. A forecast reads the outputs that it extrapolates, of the whole batch, and writes one.
"""

from dataclasses import dataclass

from ditfastattn.cache import Cell, Rows, liveness
from plans import Plan, Window
from plans.macs import Convention, method_macs


@dataclass(frozen=True)
class LayerShape:
    """A self-attention layer. ``batch`` counts the rows of a call, both guidance branches."""

    batch: int
    tokens: int
    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """C, channels."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Work:
    """What has to be done at least."""

    macs: int
    bytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.macs + other.macs, self.bytes + other.bytes)


def layer_work(cell: Cell, shape: LayerShape, window: Window, itemsize: int, convention: Convention = "module") -> Work:
    """One layer at one step.

    Args:
        cell: the method and what the step stores. A method that shares guidance needs an even batch.
        itemsize: bytes of an element, 2 in half precision.

    Raises:
        ValueError: an odd batch for a method that computes, or a step that stores, one half of it.
    """
    half = Rows.CONDITIONAL_HALF
    if shape.batch % 2 and (cell.method.shares_guidance or cell.store_residual is half):
        raise ValueError(f"a batch of {shape.batch} rows has no guidance halves; {cell.method} needs an even one")
    stored = {Rows.NOTHING: 0, half: shape.batch // 2, Rows.WHOLE_BATCH: shape.batch}[cell.store_residual]
    macs = shape.batch * method_macs(
        cell.method, tokens=shape.tokens, width=shape.width, window=window, convention=convention
    )
    macs += stored * 2 * window.pairs(shape.tokens) * shape.width
    return Work(macs, itemsize * _elements(cell, shape, stored, convention))


def _elements(cell: Cell, shape: LayerShape, stored: int, convention: Convention) -> int:
    row, width = shape.tokens * shape.width, shape.width
    if cell.method.reuses_output:
        moved = (cell.method.outputs_read + 1) * shape.batch * row  # by a forecast: what it reads, and itself
        return moved if cell.method.forecasts and convention == "module" else 0
    rows = shape.batch // 2 if cell.method.shares_guidance else shape.batch
    core = (5 if cell.method.windowed else 4) * rows * row  # q, k, v, the residual; out
    core += 5 * stored * row  # q, k, v, full; the residual
    if convention == "core":
        return core
    projections = 4 * (2 * rows * row + width * width + width)  # Q, K, V, out: input and output, weight, bias
    copied = (rows + shape.batch) * row if cell.method.shares_guidance else 0
    return core + projections + copied


def plan_work(plan: Plan, batch: int, itemsize: int, convention: Convention = "module") -> Work:
    """All self-attention of one run of a plan on ``batch`` images or videos, both guidance branches counted.

    Of every attention site, stored residuals included.
    """
    total, model = Work(0, 0), plan.model
    for site in plan.attention_sites:
        at, window = model.shape(site), plan.window_of(site)
        shape = LayerShape(batch * at.rows, at.tokens, model.heads, model.head_dim)
        for layer in range(at.layers):
            for cell in liveness(plan.column(layer, site)):
                total += layer_work(cell, shape, window, itemsize, convention)
    return total
