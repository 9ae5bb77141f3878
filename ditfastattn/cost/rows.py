"""The rows of a table: what is timed, and which row the time of a plan's cell stands in.

A block is timed once by every attention cell, its MLP computed, and once by every MLP cell, its attention reused. What
a cell costs is then a difference to the row of a block whose attention is reused and whose MLP is computed, so that the
times of any two cells of one block add up. Forecasts of attention take so little that they would drown beside an MLP:
where plans can reach it, it is reused too. A few pairs are timed as such, to see how well sums do.
"""

from dataclasses import dataclass

from ditfastattn.cache import Cell, Rows
from ditfastattn.layout import Layout
from plans import Method, SiteName

FULL = Cell(Method.FULL)
STORING = Cell(Method.FULL, store_output=Rows.WHOLE_BATCH)
LEAST = Method.AST.value  # attention reused, MLP computed: what every attention cell leaves to be done
REUSED = "mlp AST"  # both reused
BESIDE = f", {REUSED}"  # of a row whose MLP is reused
PERMUTED = "token order"  # what a plan's token order adds to a call
STEP = "step"  # the sampler, guidance and the session's checks, with a model call that is skipped
CALL = "call"  # modulations of a computed step, in prepared steps
BEGIN = "first step"  # with all that a run does once
# The host's time, where it runs ahead of the device.
HOST_STEP, HOST_CALL, HOST_BLOCK = "step, launched", "call, launched", "block, launched"

# Any weights do for timing. These continue lines and parabolas over equal distances.
WEIGHTS = {Method.AST_1: (2.0, -1.0), Method.AST_2: (3.0, -3.0, 1.0)}
REUSES = [Cell(method, weights=WEIGHTS.get(method, ())) for method in Method if method.reuses_output]


@dataclass(frozen=True)
class Row:
    """What is timed: a block by a cell of its attention and one of its MLP, or a call without its blocks.

    ``model``: FULL is all of a call but the blocks, AST and its forecasts are what takes the place of a call.
    ``permutes``: tokens into a plan's order and back, and nothing else.
    """

    name: str
    attn: Cell = FULL
    mlp: Cell = FULL
    model: Cell | None = None
    permutes: bool = False

    @property
    def is_block(self) -> bool:
        return self.model is None and not self.permutes


def row_of(site: SiteName, cell: Cell) -> str:
    """The row that a cell's time stands in.

    Of attention: its method and how much of the residual it stores; keeping an output costs nothing. Of MLPs and of
    the model: the method and whether its output is stored.
    """
    if site == "attn":
        stored = {Rows.NOTHING: "", Rows.CONDITIONAL_HALF: " + half residual", Rows.WHOLE_BATCH: " + residual"}
        return f"{cell.method}{stored[cell.store_residual]}"
    if site == "mlp" and cell.method is Method.FULL and not cell.store_output:
        return LEAST
    return f"{site} {cell.method}{' + output' if cell.store_output else ''}"


def cells_of(site: SiteName, layout: Layout) -> list[Cell]:
    """A cell for every row that plans of this guidance layout need of a site."""
    guided, half = layout is not Layout.NONE, Rows.CONDITIONAL_HALF
    if site == "mlp":
        shared = [Cell(Method.ASC), Cell(Method.ASC, store_output=half)] if guided else []
        return [FULL, STORING, *shared, *REUSES]
    if site == "model":
        return [FULL, STORING, *REUSES]
    cells = [Cell(Method.FULL, store_residual=Rows.WHOLE_BATCH), FULL, Cell(Method.WA_RS)]
    if guided:
        cells += [Cell(Method.FULL, store_residual=half), Cell(Method.ASC), Cell(Method.ASC, store_residual=half)]
        cells.append(Cell(Method.WA_RS_ASC))
    return [*cells, *REUSES]


def pairs_of(layout: Layout) -> list[Row]:
    """Blocks whose time is compared with the sum of their cells'."""
    reused, parabola = REUSES[0], REUSES[-1]
    pairs = [(FULL, reused), (parabola, parabola)]
    if layout is not Layout.NONE:
        pairs.append((Cell(Method.WA_RS_ASC), Cell(Method.ASC)))
    return [Row(f"{row_of('attn', a)}, {row_of('mlp', m)}", attn=a, mlp=m) for a, m in pairs]


def rows_of(layout: Layout, mlps: bool) -> list[Row]:
    """All that is timed of a model. ``mlps``: plans can reach its MLPs."""
    attention = cells_of("attn", layout)
    forecasts = [cell for cell in attention if mlps and cell.method.forecasts]
    rows = [Row(row_of("attn", cell), attn=cell) for cell in attention if cell not in forecasts]
    rows += [Row(row_of("attn", cell) + BESIDE, attn=cell, mlp=REUSES[0]) for cell in forecasts]
    if mlps:
        cells = [cell for cell in cells_of("mlp", layout) if cell != FULL]
        rows += [Row(row_of("mlp", cell), attn=REUSES[0], mlp=cell) for cell in cells]
        rows += pairs_of(layout)
    rows += [Row(row_of("model", cell), model=cell) for cell in cells_of("model", layout)]
    return [*rows, Row(PERMUTED, permutes=True)]
