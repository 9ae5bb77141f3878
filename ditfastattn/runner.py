"""How the steps of a run are executed: in eager mode, block by block through the model's own forward."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ditfastattn.cache import Cell, LayerCache, predicted_bytes
from ditfastattn.errors import StepError
from ditfastattn.execute import Contexts, run_block
from ditfastattn.install import Overrides
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.order import Ordering
from plans import Plan, SiteName


@dataclass(frozen=True)
class Run:
    """One run of a sampler, as it began."""

    plan: Plan
    call: Call  # the first
    entered_at: int  # its step
    cells: list[tuple[Cell, ...]]  # [block][step - entered_at], all sites in the order in which they run
    contexts: Contexts
    ordering: Ordering
    itemsize: int  # bytes of an element of an attention output

    def row_bytes(self, site: SiteName) -> int:
        """Bytes of one row of a site's attention output: N * C * itemsize."""
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
        self._blocks, self._places = list(adapter.blocks), adapter.places
        self._caches = [LayerCache() for _ in self._blocks]
        spatial = [index for index, place in enumerate(self._places) if place.site == "attn"]
        self._first, self._last = spatial[0], spatial[-1]  # between them the tokens stand in the plan's order
        self._run: Run | None = None
        self._step: int | None = None  # the step whose model call is running now
        self._ran: set[int] = set()  # the blocks that have run in it

    def install(self, overrides: Overrides) -> None:
        for module, indices in self.adapter.modules:
            overrides.set(module, "forward", partial(self._block_forward, indices, module.forward))

    def obstacles(self) -> list[str]:
        return []

    def begin(self, run: Run) -> None:
        self._run = run
        by_site = {}
        for site in run.plan.sites:
            cells = [column for column, place in zip(run.cells, self._places, strict=True) if place.site == site]
            rows = run.call.latents.shape[0] * run.plan.model.shape(site).rows
            by_site[site] = predicted_bytes(cells, rows, run.row_bytes(site))
        for held in zip(*by_site.values(), strict=True):  # at each step
            self.predicted.see(dict(zip(by_site, held, strict=True)))

    def forward(
        self, step: int, call: Call, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        self._step = step
        self._ran.clear()
        try:
            output = original(*args, **kwargs)
            self._check_all_ran(step)
        finally:
            self._step = None
        self._free(step)
        return self.adapter.unwrap(output), output

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
        cell, cache = run.cells[index][self._step - run.entered_at], self._caches[index]
        if index == self._first:
            hidden = run.ordering.enter(hidden, *others, **kwargs)
        block, context = self._blocks[index], run.contexts[self._places[index].site]
        hidden = run_block(block, cell, cache, context, hidden, *others, **kwargs)
        return run.ordering.leave(hidden) if index == self._last else hidden

    def _free(self, step: int) -> None:
        assert self._run is not None
        self.measured.see(self.cache_bytes())
        for cache, column in zip(self._caches, self._run.cells, strict=True):
            cell = column[step - self._run.entered_at]
            if cell.free_output:
                cache.output = None
            if cell.free_residual:
                cache.residual = None

    def end(self) -> None:
        for cache in self._caches:
            cache.clear()

    _closed = False

    def close(self) -> None:
        self._closed = True
        self.end()

    def cache_bytes(self) -> dict[SiteName, int]:
        held: dict[SiteName, int] = {}
        for place, cache in zip(self._places, self._caches, strict=True):
            held[place.site] = held.get(place.site, 0) + cache.nbytes()
        return held

    def report(self) -> list[str]:
        return []
