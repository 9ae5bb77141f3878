"""How long a run of a plan will take, from a measured table."""

from dataclasses import dataclass

from ditfastattn.cache import Cell, liveness
from ditfastattn.cost.rows import FULL
from ditfastattn.cost.table import CostTable
from ditfastattn.errors import CostError
from ditfastattn.layout import Layout
from ditfastattn.models.base import PreparedModel
from ditfastattn.order import order_for
from plans import ModelSpec, Plan, SiteName


@dataclass(frozen=True)
class PlanTime:
    """Milliseconds of a run, for a batch of ``table.key.batch`` rows; of a plan, and of as many steps all FULL.

    The text encoder and the VAE are in none of them.

    Attributes:
        total, full: from the first model call to the last step of the sampler.
        blocks, full_blocks: of all blocks over all steps.
        attention, full_attention: without what a step that reuses attention leaves to be done in a block.
    """

    total: float
    full: float
    blocks: float
    full_blocks: float
    attention: float
    full_attention: float
    table: CostTable

    def full_at(self, steps: int) -> float:
        """Milliseconds of a run of another number of steps, all FULL."""
        return full_time(self.table, steps)

    def __str__(self) -> str:
        key = self.table.key
        return (
            f"{self.total:.1f} ms of {self.full:.1f} ms full, measured on {key.device} "
            f"({key.runtime}, {key.batch} rows a call)"
        )


def full_time(table: CostTable, steps: int) -> float:
    """Milliseconds of a run of ``steps`` steps, all FULL."""
    return _run(table, steps, steps * table.times("model", FULL) + steps * table.key.layers * _full_block(table), steps)


def plan_time(plan: Plan, table: CostTable) -> PlanTime:
    """Sums a plan's cells; the residuals and outputs that steps store for later ones are in it.

    What is read is taken to be stored for the whole batch. Where the host is slower than the device, as with steps that
    are skipped, a run takes the host's time.

    Raises:
        CostError: the table is of another model, shape, window or guidance layout (lists every difference), or the plan
            is of video, whose models no table measures, or has the site ``cross``, which none measures.
    """
    _check(plan, table)
    attention = [cell for layer in range(plan.layers) for cell in _computed(plan, "attn", layer)]
    mlps: list[Cell] = [FULL] * len(attention)
    if "mlp" in plan.sites:
        layers = plan.model.shape("mlp").layers
        mlps = [cell for layer in range(layers) for cell in _computed(plan, "mlp", layer)]
    outputs = liveness(plan.column(0, "model")) if "model" in plan.sites else [FULL] * plan.steps
    called = plan.calls
    rest = sum(table.times("model", cell) for cell in outputs)
    if order_for(plan.token_order, (method for row in plan.methods for method in row)) != "raster":
        rest += called * table.permuting
    attention_us = sum(table.times("attn", cell) for cell in attention)
    blocks = attention_us + sum(table.times("mlp", cell) for cell in mlps)
    cells, full_block = plan.steps * plan.layers, _full_block(table)
    return PlanTime(
        total=_run(table, plan.steps, rest + blocks, called),
        full=full_time(table, plan.steps),
        blocks=blocks / 1000,
        full_blocks=cells * full_block / 1000,
        attention=attention_us / 1000,
        full_attention=cells * table.times("attn", FULL) / 1000,
        table=table,
    )


def check_measured(model: ModelSpec) -> None:
    """Raises CostError for a model, or a site of one, that no table measures."""
    if model.cross is not None:
        raise CostError(
            "the plan has the site cross, and tables hold no times of cross-attention that is reused or shared; leave "
            "that site out"
        )
    if model.temporal is not None:
        raise CostError(
            f"{model.class_name} has attention between frames too, and tables hold the times of models of images"
        )


def _check(plan: Plan, table: CostTable) -> None:
    """Raises CostError for a plan that the table does not speak of."""
    key, model = table.key, plan.model
    check_measured(model)
    pairs = {
        "model": (model.class_name, key.model),
        "layers": (model.layers, key.layers),
        "tokens": (model.tokens, key.tokens),
        "heads": (model.heads, key.heads),
        "head_dim": (model.head_dim, key.head_dim),
        "window": (str(plan.window), key.window),
        "guidance layout": (plan.guidance.layout, key.layout),
    }
    differences = [f"{name}: the plan has {a}, the table {b}" for name, (a, b) in pairs.items() if a != b]
    if differences:
        raise CostError("this table was not measured for this plan: " + "; ".join(differences))


def _computed(plan: Plan, site: SiteName, layer: int) -> list[Cell]:
    """The cells of one layer in the steps in which the model is called."""
    skipped = plan.skipped
    cells = liveness(plan.column(layer, site), skipped=skipped)
    return [cell for step, cell in enumerate(cells) if step not in skipped]


def _full_block(table: CostTable) -> float:
    return table.times("attn", FULL) + table.times("mlp", FULL)


def _run(table: CostTable, steps: int, work: float, called: int) -> float:
    """Milliseconds of a run in which ``called`` of ``steps`` steps call the model; ``work``: microseconds of cells."""
    step, call = table.launching
    return (table.begin + max(steps * table.overhead + work, steps * step + called * call)) / 1000


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
    return min(times, key=lambda time: time.full)  # by the fastest way of running blocks
