"""A model's parts as ``apply(pipe, plan)`` runs them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ditfastattn.cache import Cell, LayerCache
from ditfastattn.cost.parts import Parts
from ditfastattn.cost.rows import FULL, Row
from ditfastattn.cost.steps import session_rows
from ditfastattn.cost.timing import Thunk
from ditfastattn.execute import Context, run_block, run_parts
from ditfastattn.forecast import reused_output
from ditfastattn.install import Overrides
from ditfastattn.models.base import PreparedModel
from ditfastattn.models.parts import WithParts
from plans import SiteName


class EagerParts(Parts):
    """Blocks by :mod:`ditfastattn.execute`, on the arguments that the model calls its first block with."""

    def __init__(self, adapter: PreparedModel, batch: int, tokens: int, context: Context) -> None:
        super().__init__(adapter, batch, tokens, context)
        (self._hidden, *self._others), self._kwargs = _block_arguments(adapter, self.given)

    def _block(self, row: Row) -> Thunk:
        caches = [self.stored(layer, row) for layer in range(self.layers)]
        others, kwargs, context = self._others, self._kwargs, self.context

        def run() -> Tensor:
            hidden: Tensor = self._hidden
            for block, (attention, mlp) in zip(self.adapter.blocks, caches, strict=False):
                if row.mlp == FULL:
                    hidden = run_block(block, row.attn, attention, context, hidden, *others, **kwargs)
                else:
                    assert isinstance(block, WithParts)
                    parts: dict[SiteName, tuple[Cell, LayerCache]] = {"mlp": (row.mlp, mlp)}
                    hidden = run_parts(block, (row.attn, attention), parts, context, hidden, *others, **kwargs)
            return hidden

        return run

    def _model(self, cell: Cell) -> Thunk:
        model, adapter = self.adapter.model, self.adapter

        def rest() -> Tensor:
            """The model's own forward, its blocks left out."""
            overrides = Overrides()
            for block in adapter.blocks:
                overrides.set(block.module, "forward", lambda hidden, *_, **__: hidden)
            try:
                output = adapter.unwrap(type(model).forward(model, **self.given))
            finally:
                overrides.restore()
            return output.clone() if cell.store_output else output

        output = rest()
        cache = LayerCache(output, None, (output.clone(), output.clone()))

        def reused() -> Tensor:
            again = reused_output(cell, cache, self.batch, self.context.layout)
            return again if cell.method.forecasts else again.clone()

        return reused if cell.method.reuses_output else rest

    def step_rows(self) -> Mapping[str, float]:
        return session_rows(self.adapter, self.call, self.given, self.context, compile=False, graphs=False)


class _Reached(Exception):
    """The block was called, and its arguments are known."""


def _block_arguments(adapter: PreparedModel, given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model calls its first block with."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def reached(*args: Any, **kwargs: Any) -> None:
        found.append((args, kwargs))
        raise _Reached

    overrides = Overrides()
    overrides.set(adapter.blocks[0].module, "forward", reached)
    try:
        type(adapter.model).forward(adapter.model, **given)  # of the class: a plan may be installed on the instance
    except _Reached:
        pass
    finally:
        overrides.restore()
    return found[0]
