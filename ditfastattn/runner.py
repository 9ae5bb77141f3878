"""How the steps of a run are executed: in eager mode, block by block through the model's own forward."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ditfastattn.cache import Cell, LayerCache, predicted_bytes
from ditfastattn.errors import StepError
from ditfastattn.execute import Contexts, run_block, run_parts
from ditfastattn.forecast import reused_output
from ditfastattn.identity import Identity
from ditfastattn.install import Overrides
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.models.parts import WithParts
from ditfastattn.order import Ordering
from ditfastattn.skip import Form, form_of
from plans import Plan, SiteName


@dataclass(frozen=True)
class Run:
    """One run of a sampler, as it began."""

    plan: Plan
    call: Call  # the first
    entered_at: int  # its step
    cells: Mapping[SiteName, list[tuple[Cell, ...]]]  # [layer of the site][step - entered_at]
    contexts: Contexts
    layout: Layout
    ordering: Ordering
    itemsize: int  # bytes of an element of the output of any site but the model
    identity: Identity  # of the model

    def cell(self, site: SiteName, layer: int, step: int) -> Cell:
        """What one layer of a site does at a step."""
        return self.cells[site][layer][step - self.entered_at]

    def output_cell(self, step: int) -> Cell | None:
        """What is done with the model's output at a step, in a plan that says."""
        return self.cell("model", 0, step) if "model" in self.cells else None

    def rows(self, site: SiteName) -> int:
        """Rows of a call at one site, both guidance branches counted."""
        return self.call.latents.shape[0] * self.plan.model.shape(site).rows

    def row_bytes(self, site: SiteName) -> int:
        """Bytes of one row of a module's output: N * C * itemsize."""
        return self.plan.model.shape(site).tokens * self.plan.model.width * self.itemsize


@dataclass
class CachePeaks:
    """The most bytes that caches held at one time, or are predicted to hold: of each site, and of all at once."""

    sites: dict[SiteName, int] = field(default_factory=dict)
    total: int = 0

    def see(self, held: Mapping[SiteName, int]) -> None:
        """``held``: bytes at one time."""
        for site, count in held.items():
            self.sites[site] = max(self.sites.get(site, 0), count)
        self.total = max(self.total, sum(held.values()))


class Runner(ABC):
    """Computes the model calls of a session, which has checked them."""

    prepares: bool  # steps are launched without waiting for the device
    captures = False  # on a GPU, as CUDA graphs

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter = adapter
        self.measured = CachePeaks()
        self.predicted = CachePeaks()

    @abstractmethod
    def install(self, overrides: Overrides) -> None:
        """Sets what it needs on the model."""

    @abstractmethod
    def obstacles(self) -> list[str]:
        """Why this model cannot be run this way."""

    @abstractmethod
    def begin(self, run: Run) -> None: ...

    @abstractmethod
    def forward(
        self, step: int, call: Call, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        """The model output of one step, like the latents in shape, bare and as the model's own forward returns it."""

    @abstractmethod
    def end(self) -> None:
        """The run is over, finished or not. Its caches are no longer read."""

    @abstractmethod
    def close(self) -> None:
        """Frees everything."""

    @abstractmethod
    def cache_bytes(self) -> dict[SiteName, int]:
        """What is held now, by site."""

    @abstractmethod
    def report(self) -> list[str]:
        """Lines for the session's summary."""


class EagerRunner(Runner):
    """The model's own forward, its blocks replaced. Nothing is prepared; caches live from their store to their last
    reader."""

    prepares = False

    def __init__(self, adapter: ModelAdapter) -> None:
        super().__init__(adapter)
        self._blocks, self._places, self._part_layers = list(adapter.blocks), adapter.places, adapter.part_layers
        self._caches: dict[SiteName, list[LayerCache]] = {}
        spatial = [index for index, place in enumerate(self._places) if place.site == "attn"]
        self._first, self._last = spatial[0], spatial[-1]  # between them the tokens stand in the plan's order
        self._run: Run | None = None
        self._step: int | None = None  # the step whose model call is running now
        self._ran: set[int] = set()  # the blocks that have run in it
        self._form: Form | None = None  # of what the model's forward returned in this run

    def install(self, overrides: Overrides) -> None:
        for module, indices in self.adapter.modules:
            overrides.set(module, "forward", partial(self._block_forward, indices, module.forward))

    def obstacles(self) -> list[str]:
        return []

    def begin(self, run: Run) -> None:
        self._run, self._form = run, None
        self._caches = {site: [LayerCache() for _ in columns] for site, columns in run.cells.items()}

    def forward(
        self, step: int, call: Call, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        assert self._run is not None
        cell = self._run.output_cell(step)
        if cell is not None and cell.method.reuses_output:
            assert self._form is not None
            output = reused_output(cell, self._caches["model"][0], len(call.latents), self._run.layout)
            output = output if cell.method.forecasts else output.clone()  # the caller's to change
            result = self._form(output)
        else:
            output, result = self._computed(self._run, step, cell, partial(original, *args, **kwargs))
        self._free(step)
        return output, result

    def _computed(self, run: Run, step: int, cell: Cell | None, forward: Callable[[], Any]) -> tuple[Tensor, Any]:
        """The model's own output, kept if ``cell`` says so."""
        self._step = step
        self._ran.clear()
        try:
            result = forward()
            self._check_all_ran(step)
        finally:
            self._step = None
        output = self.adapter.unwrap(result)
        if self._form is None and run.plan.skipped:
            self._form = form_of(result)
        if cell is not None and cell.store_output:
            self._caches["model"][0].keep(output.clone(), cell.older)
        if step == run.entered_at:
            self._predict(run, output)
        return output, result

    def _predict(self, run: Run, output: Tensor) -> None:
        """The bytes of caches at every step of a run, whose first model output is at hand."""
        by_site = {}
        for site, cells in run.cells.items():
            rows, row_bytes = (
                (len(output), output[0].nbytes) if site == "model" else (run.rows(site), run.row_bytes(site))
            )
            by_site[site] = predicted_bytes(cells, rows, row_bytes)
        for held in zip(*by_site.values(), strict=True):  # at each step
            self.predicted.see(dict(zip(by_site, held, strict=True)))

    def _check_all_ran(self, step: int) -> None:
        if missing := [str(place) for i, place in enumerate(self._places) if i not in self._ran]:
            raise StepError(
                f"{', '.join(missing[:3])} did not run at step {step}, but a plan counts on every layer at every step: "
                "do without one where the model leaves layers out"
            )

    def _block_forward(self, indices: range, original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The forward of a module that runs the blocks of these indices, most often one."""
        if self._closed:
            return original(*args, **kwargs)
        name = self._places[indices[0]]
        if self._step is None or self._run is None:
            raise StepError(
                f"{name} was called outside of its transformer's forward, so its step is unknown: another tool "
                "replaced the transformer's forward after the plan was applied (CPU offload?), or a block was called "
                "by itself; remove the plan first"
            )
        if not args and "hidden_states" not in kwargs:
            raise StepError(f"{name} was called without a positional argument: pass its hidden states first")
        if indices[0] in self._ran:
            raise StepError(
                f"{name} was called twice at step {self._step}: what a plan keeps of a layer is of one call a step, so "
                "a module that runs in several places cannot follow it"
            )
        self._ran.update(indices)
        hidden, *others = args or (kwargs.pop("hidden_states"),)
        for index in indices:
            hidden = self._run_block(self._run, index, hidden, others, kwargs)
        return hidden

    def _run_block(self, run: Run, index: int, hidden: Tensor, others: list[Any], kwargs: dict[str, Any]) -> Tensor:
        """One block. The tokens stand in the plan's order from the first spatial block's input to the last's output;
        attention between frames does not mind, as it sees one place of a frame at a time."""
        assert self._step is not None
        block, place = self._blocks[index], self._places[index]
        attention = self._work(run, place.site, place.layer)
        context = run.contexts[place.site]
        if index == self._first:
            hidden = run.ordering.enter(hidden, *others, **kwargs)
        layers = self._part_layers[index].items()
        parts = {site: self._work(run, site, layer) for site, layer in layers if site in run.cells}
        if parts:
            assert isinstance(block, WithParts)
            hidden = run_parts(block, attention, parts, context, hidden, *others, **kwargs)
        else:
            hidden = run_block(block, *attention, context, hidden, *others, **kwargs)
        return run.ordering.leave(hidden) if index == self._last else hidden

    def _work(self, run: Run, site: SiteName, layer: int) -> tuple[Cell, LayerCache]:
        """What one layer of a site does now, and what it reads and fills."""
        assert self._step is not None
        return run.cell(site, layer, self._step), self._caches[site][layer]

    def _free(self, step: int) -> None:
        assert self._run is not None
        self.measured.see(self.cache_bytes())
        for site, caches in self._caches.items():
            for layer, cache in enumerate(caches):
                cache.free(self._run.cell(site, layer, step))

    def end(self) -> None:
        self._caches = {}
        self._form = None

    _closed = False

    def close(self) -> None:
        self._closed = True
        self.end()

    def cache_bytes(self) -> dict[SiteName, int]:
        return {site: sum(cache.nbytes() for cache in caches) for site, caches in self._caches.items()}

    def report(self) -> list[str]:
        return []
