"""How long the blocks of a plan will take, from a measured table."""

from dataclasses import dataclass

from ditfastattn.cache import liveness
from ditfastattn.cost.table import CostTable, row_of
from ditfastattn.errors import CostError
from ditfastattn.layout import Layout
from ditfastattn.models.base import PreparedModel
from plans import Method, Plan


@dataclass(frozen=True)
class PlanTime:
    """Milliseconds of all blocks over all steps, for a batch of ``table.key.batch`` rows.

    ``attention``: without what an AST step leaves to be done, which no plan can save.
    """

    blocks: float
    full_blocks: float
    attention: float
    full_attention: float
    table: CostTable

    def __str__(self) -> str:
        key = self.table.key
        return (
            f"{self.blocks:.1f} ms of {self.full_blocks:.1f} ms full, measured on {key.device} "
            f"({key.runtime}, {key.batch} rows a call)"
        )


def plan_time(plan: Plan, table: CostTable) -> PlanTime:
    """Sums a plan's cells; the residuals that steps store for later ones are in it.

    Raises:
        CostError: the table is of another model, shape, window or guidance layout (lists every difference), or the plan
            has what no table measures: forecasts, or the sites mlp and model.
    """
    key, model = table.key, plan.model
    pairs = {
        "model": (model.class_name, key.model),
        "tokens": (model.tokens, key.tokens),
        "heads": (model.heads, key.heads),
        "head_dim": (model.head_dim, key.head_dim),
        "window": (str(plan.window), key.window),
        "guidance layout": (plan.guidance.layout, key.layout),
    }
    differences = [f"{name}: the plan has {a}, the table {b}" for name, (a, b) in pairs.items() if a != b]
    if differences:
        raise CostError("this table was not measured for this plan: " + "; ".join(differences))
    unmeasured: list[str] = [name for name in plan.sites if name not in plan.attention_sites]
    unmeasured += sorted({method for row in plan.methods for method in row if method.forecasts})
    if unmeasured:
        names = ", ".join(unmeasured)
        raise CostError(f"tables hold the times of attention by the paper's methods, but this plan also has {names}")
    us = table.microseconds
    cells = [cell for layer in range(plan.layers) for cell in liveness(plan.column(layer))]
    blocks = sum(us[row_of(cell)] for cell in cells) / 1000
    full = len(cells) * us[Method.FULL] / 1000
    rest = len(cells) * us[Method.AST] / 1000
    return PlanTime(blocks, full, blocks - rest, full - rest, table)


def predict(adapter: PreparedModel, plan: Plan, kernel: str, batch: int) -> PlanTime | None:
    """The plan's time from what the disk knows of this model here; None if it was never measured.

    Args:
        kernel: the name of the kernel that the plan is run with.
        batch: rows of a call; without a table of just that many the next smaller one speaks, or the smallest.
    """
    layout = Layout(plan.guidance.layout)
    tables = CostTable.stored(adapter, plan.model.tokens, kernel, plan.window, layout)
    if not tables:
        return None
    batches = sorted(table.key.batch for table in tables)
    nearest = max((rows for rows in batches if rows <= batch), default=batches[0])
    times = [plan_time(plan, table) for table in tables if table.key.batch == nearest]
    return min(times, key=lambda time: time.full_blocks)  # by the fastest way of running blocks
