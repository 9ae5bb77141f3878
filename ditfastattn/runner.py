"""How the steps of a run are executed: in eager mode, block by block through the model's own forward."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ditfastattn.cache import Cell, LayerCache, predicted_bytes
from ditfastattn.errors import StepError
from ditfastattn.execute import Context, run_block
from ditfastattn.install import Overrides
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.order import Ordering
from plans import Plan


@dataclass(frozen=True)
class Run:
    """One run of a sampler, as it began."""

    plan: Plan
    call: Call  # the first
    entered_at: int  # its step
    cells: list[tuple[Cell, ...]]  # [layer][step - entered_at]
    context: Context
    ordering: Ordering
    row_bytes: int  # of one row of an attention output, N * C * itemsize


class Runner(ABC):
    """Computes the model calls of a session, which has checked them."""

    prepares: bool  # steps are launched without waiting for the device

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter = adapter
        self.peak_bytes = 0  # of the caches, measured
        self.predicted_peak_bytes = 0

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
        """The model output (B, C_out, h, w) of one step, bare and as the model's own forward would return it."""

    @abstractmethod
    def end(self) -> None:
        """The run is over, finished or not. Its caches are no longer read."""

    @abstractmethod
    def close(self) -> None:
        """Frees everything."""

    @abstractmethod
    def cache_bytes(self) -> int:
        """What is held now."""

    @abstractmethod
    def report(self) -> list[str]:
        """Lines for the session's summary."""


class EagerRunner(Runner):
    """The model's own forward, its blocks replaced. Nothing is prepared; caches live from their store to their last
    reader."""

    prepares = False

    def __init__(self, adapter: ModelAdapter) -> None:
        super().__init__(adapter)
        self._caches = [LayerCache() for _ in adapter.blocks]
        self._run: Run | None = None
        self._step: int | None = None  # the step whose model call is running now

    def install(self, overrides: Overrides) -> None:
        for layer, block in enumerate(self.adapter.blocks):
            overrides.set(block.module, "forward", partial(self._block_forward, layer, block.module.forward))

    def obstacles(self) -> list[str]:
        return []

    def begin(self, run: Run) -> None:
        self._run = run
        predicted = max(predicted_bytes(run.cells, run.call.latents.shape[0], run.row_bytes))
        self.predicted_peak_bytes = max(self.predicted_peak_bytes, predicted)

    def forward(
        self, step: int, call: Call, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        self._step = step
        try:
            output = original(*args, **kwargs)
        finally:
            self._step = None
        self._free(step)
        return self.adapter.unwrap(output), output

    def _block_forward(self, layer: int, original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """A block's forward. The tokens stand in the plan's order from the first block's input to the last's output."""
        if self._closed:
            return original(*args, **kwargs)
        if self._step is None or self._run is None:
            raise StepError(
                f"block {layer} was called outside of its transformer's forward, so its step is unknown: another tool "
                "replaced the transformer's forward after the plan was applied (CPU offload?), or a block was called "
                "by itself; remove the plan first"
            )
        if not args and "hidden_states" not in kwargs:
            raise StepError(f"block {layer} was called without a positional argument: pass its hidden states first")
        hidden, *args = args or (kwargs.pop("hidden_states"),)  # type: ignore[assignment]
        ordering, context = self._run.ordering, self._run.context
        cell = self._run.cells[layer][self._step - self._run.entered_at]
        hidden = ordering.enter(hidden, *args, **kwargs) if layer == 0 else hidden
        block, cache = self.adapter.blocks[layer], self._caches[layer]
        hidden = run_block(block, cell, cache, context, hidden, *args, **kwargs)
        return ordering.leave(hidden) if layer + 1 == self._run.plan.layers else hidden

    def _free(self, step: int) -> None:
        assert self._run is not None
        self.peak_bytes = max(self.peak_bytes, self.cache_bytes())
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

    def cache_bytes(self) -> int:
        return sum(cache.nbytes() for cache in self._caches)

    def report(self) -> list[str]:
        return []
