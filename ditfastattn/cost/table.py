"""Microseconds of one block by each method, measured once on the real model and kept on disk."""

import platform
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import torch

from ditfastattn.cache import Cell, Rows
from ditfastattn.cost import store
from ditfastattn.cost.blocks import Prepare, eager_block
from ditfastattn.cost.timing import captured, interleaved
from ditfastattn.errors import CostError
from ditfastattn.execute import Context
from ditfastattn.kernels import make_kernel
from ditfastattn.kernels.base import Kernel
from ditfastattn.layout import Layout
from ditfastattn.models.base import PreparedModel
from plans import Method, Window

EAGER = "eager"


@dataclass(frozen=True)
class TableKey:
    """All that a measured time depends on. ``parameters``: of one block, which tells MLPs and cross-attention apart."""

    model: str
    parameters: int
    batch: int
    tokens: int
    heads: int
    head_dim: int
    dtype: str
    kernel: str
    window: str
    layout: str
    device: str
    torch: str
    runtime: str

    @classmethod
    def of(
        cls, adapter: PreparedModel, batch: int, tokens: int, kernel: str, window: Window, layout: Layout, runtime: str
    ) -> "TableKey":
        spec, module = adapter.spec(), adapter.blocks[0].module
        parameter = next(adapter.model.parameters())
        return cls(
            model=spec.class_name,
            parameters=sum(p.numel() for p in module.parameters()),
            batch=batch,
            tokens=tokens,
            heads=spec.heads,
            head_dim=spec.head_dim,
            dtype=str(parameter.dtype).removeprefix("torch."),
            kernel=kernel,
            window=str(window),
            layout=layout.value,
            device=device_name(parameter.device),
            torch=str(torch.__version__),
            runtime=runtime,
        )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's kind with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type.upper()}, {torch.get_num_threads()} threads"


def row_of(cell: Cell) -> str:
    """The row of the table that a cell's time stands in: its method, and how much of the residual it stores."""
    stored = {Rows.NOTHING: "", Rows.CONDITIONAL_HALF: " + half residual", Rows.WHOLE_BATCH: " + residual"}
    return f"{cell.method}{stored[cell.store_residual]}"


def cells_of(layout: Layout) -> list[Cell]:
    """A cell for every row that plans of this guidance layout need."""
    cells = [Cell(Method.FULL, store_residual=Rows.WHOLE_BATCH), Cell(Method.FULL), Cell(Method.WA_RS)]
    if layout is not Layout.NONE:
        half = Rows.CONDITIONAL_HALF
        cells += [Cell(Method.FULL, store_residual=half), Cell(Method.ASC), Cell(Method.ASC, store_residual=half)]
        cells.append(Cell(Method.WA_RS_ASC))
    return [*cells, Cell(Method.AST)]


@dataclass(frozen=True)
class CostTable:
    """Median microseconds of one block; ``date`` is the day (UTC) they were measured."""

    key: TableKey
    microseconds: dict[str, float]
    date: str

    @classmethod
    def of(
        cls,
        adapter: PreparedModel,
        batch: int,
        tokens: int,
        kernel: Kernel | str = "auto",
        run: Prepare | None = None,
        *,
        runtime: str = EAGER,
        window: Window | None = None,
        guided: bool = True,
        graphs: bool = False,
        refresh: bool = False,
        repeats: int = 9,
    ) -> "CostTable":
        """The table for this model, from disk if it was measured before, else measured now and kept.

        Args:
            batch: rows of a transformer call, both guidance branches counted.
            tokens: N, in one call's self-attention.
            run: the way a block is run, cell by cell (``ditfastattn.cost.blocks``); None runs it as ``apply`` does.
            runtime: a name for that way, part of the key.
            window: default N // 8 on each side.
            guided: whether the batch holds both branches, in the model's own order.
            graphs: capture each block as a CUDA graph, as prepared steps are; part of ``runtime``'s meaning.
            refresh: measure even if the disk has it.

        Raises:
            CostError: an odd batch with guidance, or another way of running blocks than "eager" under that name.
            KernelError: the kernel does not fit.
        """
        if (run is None and not graphs) != (runtime == EAGER):
            raise CostError(f'give run= or graphs= together with a runtime= other than "eager", not {runtime!r}')
        if batch < 1 or (guided and batch % 2):
            raise CostError(f"a batch of {batch} rows cannot be measured; give a positive number, even with guidance")
        window = window or Window.default(tokens)
        spec, parameter = adapter.spec(), next(adapter.model.parameters())
        sample = parameter.new_empty((batch, tokens, spec.heads, spec.head_dim))
        if isinstance(kernel, str):
            kernel = make_kernel(kernel, sample, window)
        context = Context(kernel, window, adapter.guided_layout if guided else Layout.NONE)
        key = TableKey.of(adapter, batch, tokens, kernel.name, window, context.layout, runtime)
        file = store.cache_file()
        found = None if refresh else next((table for table in _tables(file) if table.key == key), None)
        if found and set(found.microseconds) == {row_of(cell) for cell in cells_of(context.layout)}:
            return found
        with torch.no_grad():
            prepare = run or eager_block(adapter, batch, tokens, context)
            times = measure(prepare, context.layout, parameter.device, graphs=graphs, repeats=repeats)
        table = cls(key, times, datetime.now(UTC).date().isoformat())
        store.write(file, {"key": asdict(key), "microseconds": times, "date": table.date})
        return table

    @classmethod
    def stored(
        cls, adapter: PreparedModel, tokens: int, kernel: str, window: Window, layout: Layout
    ) -> "list[CostTable]":
        """The tables on disk for this model here and now, of whatever batch and runtime. Measures nothing."""
        wanted = TableKey.of(adapter, 0, tokens, kernel, window, layout, "")
        free = ("batch", "runtime")
        names = [field.name for field in fields(TableKey) if field.name not in free]
        return [
            table
            for table in _tables(store.cache_file())
            if all(getattr(table.key, name) == getattr(wanted, name) for name in names)
        ]


def measure(
    prepare: Prepare,
    layout: Layout,
    device: torch.device,
    *,
    graphs: bool = False,
    repeats: int = 9,
    launches: int | None = None,
) -> dict[str, float]:
    """Median microseconds of one block by each method, interleaved.

    Args:
        prepare: the way a block is run.
        graphs: capture each as a CUDA graph first, as prepared steps are.
        launches: calls timed together (default: 10 on a GPU, 1 on a CPU).
    """
    runs = {row_of(cell): prepare(cell) for cell in cells_of(layout)}
    for run in runs.values():
        run()  # compiles, and tunes kernels
    if graphs:
        torch.cuda.synchronize()
        runs = {name: captured(run) for name, run in runs.items()}
    if launches is None:
        launches = 10 if device.type == "cuda" else 1
    return {name: round(us, 3) for name, us in interleaved(runs, device, repeats, launches).items()}


def _tables(file: Path) -> list[CostTable]:
    found = []
    names = {field.name for field in fields(TableKey)}
    for table in store.read(file):
        if set(table["key"]) == names:  # another version's may have others
            found.append(CostTable(TableKey(**table["key"]), dict(table["microseconds"]), table["date"]))
    return found
