"""A transformer whose blocks run by whatever method is asked, one model call at a time."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from calibration.blocks import Blocks
from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.errors import StepError
from ditfastattn.execute import Contexts
from ditfastattn.install import Overrides
from ditfastattn.models.base import ModelAdapter
from ditfastattn.order import Ordering
from plans import Method


def storing(method: Method, residuals: bool = True) -> Cell:
    """A cell that keeps all a later step might need; calibration does not know yet what the plan will reuse."""
    if method.reuses_output:
        return Cell(method)
    rows = Rows.CONDITIONAL_HALF if method.shares_guidance else Rows.WHOLE_BATCH
    refresh = method.refreshes_residual and residuals
    return Cell(method, store_output=rows, store_residual=rows if refresh else Rows.NOTHING)


class Probe:
    """Installs itself on a transformer's blocks; ``with`` takes it off again.

    ``caches`` are those of the trajectory chosen so far; ``block_runs`` counts whole blocks run, ``residual_passes``
    attention cores run again for their residual alone. All that a behaviour sees stands in the order of ``ordering``.
    Layers are counted in the order in which their attention runs, those of a video model's sites in turn.
    """

    def __init__(
        self, adapter: ModelAdapter, contexts: Contexts, ordering: Ordering, residuals: bool, blocks: Blocks
    ) -> None:
        self.adapter = adapter
        self.contexts = contexts
        self.places = adapter.places
        spatial = [layer for layer, place in enumerate(self.places) if place.site == "attn"]
        self._first, self._last = spatial[0], spatial[-1]  # between them the tokens stand in their order
        self.blocks = blocks
        self.ordering = ordering
        self.residuals = residuals
        self.caches = [LayerCache() for _ in adapter.blocks]
        self.block_runs = 0
        self.residual_passes = 0
        self._behaviour: Callable[..., Tensor] | None = None
        self._ran: list[int] = []  # layers, in the model call that is under way
        self._overrides = Overrides()

    @property
    def layers(self) -> int:
        return len(self.places)

    def __enter__(self) -> "Probe":
        for module, layers in self.adapter.modules:
            self._overrides.set(module, "forward", partial(self._forward, layers))
        return self

    def __exit__(self, *_: object) -> None:
        self._overrides.restore()

    def _forward(self, layers: range, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The forward of a module that runs these layers, most often one."""
        assert self._behaviour is not None, "a block was called outside of Probe.call"
        hidden = hidden_states
        self._ran += layers
        for layer in layers:
            hidden = self.ordering.enter(hidden, *args, **kwargs) if layer == self._first else hidden
            hidden = self._behaviour(layer, hidden, *args, **kwargs)
            hidden = self.ordering.leave(hidden) if layer == self._last else hidden
        return hidden

    def call(self, predict: Callable[[], Tensor], behaviour: Callable[..., Tensor]) -> Tensor:
        """``predict()`` with every block call answered by ``behaviour(layer, hidden, *args, **kwargs)``.

        Raises:
            StepError: a layer ran twice, not at all, or before one that stands earlier in the model.
        """
        self._behaviour = behaviour
        self._ran.clear()
        try:
            output = predict()
        finally:
            self._behaviour = None
        if self._ran != list(range(self.layers)):
            raise StepError(
                f"at one step {type(self.adapter.model).__name__} ran its layers in the order {self._ran}, but a plan "
                f"counts on each of its {self.layers}, once and in the order of the model"
            )
        return output

    def run_block(self, layer: int, cell: Cell, cache: LayerCache, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.block_runs += 1
        return self.blocks.run(layer, cell, cache, hidden, *args, **kwargs)

    def commit(self, predict: Callable[[], Tensor], methods: Sequence[Method]) -> Tensor:
        """One model call by ``methods``, storing what later steps may need; the model output."""

        def behaviour(layer: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            cell = storing(methods[layer], self.residuals)
            return self.run_block(layer, cell, self.caches[layer], hidden, *args, **kwargs)

        return self.call(predict, behaviour)

    def residual(self, layer: int, method: Method, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The residual a FULL or ASC block would store, from the block's input alone."""
        self.residual_passes += 1
        context = self.contexts[self.places[layer].site]
        q, k, v = self.blocks.qkv(layer, method, hidden, *args, **kwargs)
        return context.kernel.residual(q, k, v, context.kernel.full(q, k, v), context.window)
