"""Microseconds of what a plan decides and of what none can save, measured on the real model and kept on disk."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import torch

from ditfastattn.cache import Cell
from ditfastattn.cost import store
from ditfastattn.cost.eager import EagerParts
from ditfastattn.cost.key import EAGER, TableKey
from ditfastattn.cost.measuring import Way, measure
from ditfastattn.cost.rows import (
    BEGIN,
    BESIDE,
    CALL,
    FULL,
    HOST_BLOCK,
    HOST_CALL,
    HOST_STEP,
    LEAST,
    PERMUTED,
    REUSED,
    STEP,
    pairs_of,
    row_of,
    rows_of,
)
from ditfastattn.errors import CostError
from ditfastattn.execute import Context
from ditfastattn.kernels import make_kernel
from ditfastattn.kernels.base import Kernel
from ditfastattn.layout import Layout
from ditfastattn.models.base import PreparedModel
from plans import Method, SiteName, Window
from plans.model import SITES
from plans.site import methods_of


@dataclass(frozen=True)
class CostTable:
    """Median microseconds; ``date`` is the day (UTC) they were measured.

    A row of a block is that of one block, averaged over the model's (``ditfastattn.cost.rows`` says what each row is).
    A plan's time is a sum: for each step :attr:`overhead`; for each site and layer of it :meth:`times` of its cell; of
    the site ``model`` FULL where the model is called, and of blocks nothing where it is not; :attr:`begin` once.
    """

    key: TableKey
    microseconds: dict[str, float]
    date: str

    def times(self, site: SiteName, cell: Cell) -> float:
        """Microseconds that a cell of one layer adds to a run.

        Attention that is reused adds nothing by itself. An MLP's cell has with it what no cell leaves out of a block:
        gates, and cross-attention. The model's FULL is all of a call but its blocks.

        Raises:
            CostError: the table has no such cell.
        """
        name = row_of(site, cell)
        if site == "attn" and name + BESIDE in self.microseconds and cell.method.forecasts:
            return self._row(name + BESIDE) - self._row(REUSED)
        us = self._row(name)
        if site == "attn":
            return us - self._row(LEAST)
        if site == "mlp" or cell.method is Method.FULL:
            return us + (self.microseconds.get(CALL, 0.0) if site == "model" else 0.0)
        return us - self._row("model AST")  # a step's own row has that in it

    @property
    def sites(self) -> tuple[SiteName, ...]:
        """Those whose cells it has the times of."""
        return tuple(
            site for site in SITES if any(name.startswith(f"{site} ") for name in self.microseconds) or site == "attn"
        )

    @property
    def overhead(self) -> float:
        """Microseconds of a step that no plan saves, a skipped one's too."""
        return self._row(STEP)

    @property
    def begin(self) -> float:
        """Microseconds that a run takes once, before its first step."""
        computed = self.overhead + self.times("model", FULL) + self.key.layers * self._row(Method.FULL)
        return max(0.0, self._row(BEGIN) - computed)

    @property
    def permuting(self) -> float:
        """Microseconds that a plan's token order adds to a model call."""
        return self._row(PERMUTED)

    @property
    def launching(self) -> tuple[float, float]:
        """Microseconds that the host takes for a step, and more for one in which the model is called.

        Both 0 where nothing runs ahead of the device. A run takes as long as its host at least.
        """
        us, blocks = self.microseconds, self.key.layers
        return us.get(HOST_STEP, 0.0), us.get(HOST_CALL, 0.0) + blocks * us.get(HOST_BLOCK, 0.0)

    def never_slower(self, site: SiteName) -> tuple[Method, ...]:
        """The methods of a site that are measured no slower than FULL, in cost order: all that a planner may choose.

        Without what a step stores for them.
        """
        layout = Layout(self.key.layout)
        cells = [Cell(m) for m in methods_of(site) if layout is not Layout.NONE or not m.shares_guidance]
        full = self.times(site, FULL)
        return tuple(cell.method for cell in cells if self.times(site, cell) <= full)

    def pair_errors(self) -> dict[str, float]:
        """Of pairs of cells that were measured together, how far the sum of both is off: 0.05 is 5 % too much."""
        found = {}
        for pair in pairs_of(Layout(self.key.layout)):
            if pair.name in self.microseconds:
                added = self.times("attn", pair.attn) + self.times("mlp", pair.mlp)
                found[pair.name] = added / self.microseconds[pair.name] - 1
        return found

    def _row(self, name: str) -> float:
        if name not in self.microseconds:
            raise CostError(f"this table has no row {name!r}; it has {', '.join(self.microseconds)}")
        return self.microseconds[name]

    @classmethod
    def of(
        cls,
        adapter: PreparedModel,
        batch: int,
        tokens: int,
        kernel: Kernel | str = "auto",
        way: Callable[[Context], Way] | None = None,
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
            way: makes it ready to be run (``ditfastattn.cost.parts``); None runs it as ``apply`` does. Not called if
                the disk has the table.
            runtime: a name for that way, part of the key.
            window: default N // 8 on each side.
            guided: whether the batch holds both branches, in the model's own order.
            graphs: capture every row as a CUDA graph, as prepared steps are; part of ``runtime``'s meaning.
            refresh: measure even if the disk has it.

        Raises:
            CostError: an odd batch with guidance, or another way of running the model than "eager" under that name.
            KernelError: the kernel does not fit.
            ApplyError: the model cannot follow a plan, or follows one now.
        """
        if (way is None) != (runtime == EAGER) or (graphs and way is None):
            raise CostError(f'give way= together with a runtime= other than "eager", not {runtime!r}')
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
        rows = rows_of(context.layout, adapter.mlp is not None)
        if found and {row.name for row in rows} | {STEP, BEGIN} <= set(found.microseconds):
            return found
        with torch.no_grad():
            ready = EagerParts(adapter, batch, tokens, context) if way is None else way(context)
            times = measure(ready, rows, parameter.device, graphs=graphs, repeats=repeats)
            times |= {name: round(us, 3) for name, us in ready.step_rows().items()}
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


def _tables(file: Path) -> list[CostTable]:
    found = []
    names = {field.name for field in fields(TableKey)}
    for table in store.read(file):
        if set(table["key"]) == names:  # another version's may have others
            found.append(CostTable(TableKey(**table["key"]), dict(table["microseconds"]), table["date"]))
    return found
