"""A model on random input, taken apart so that every row of a table can be run again and again.

Blocks run one after the other with their own weights and stored tensors, as in a step: a block alone would find in the
GPU's cache what a step has to fetch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.cost.rows import Row
from ditfastattn.cost.timing import Thunk
from ditfastattn.execute import Context
from ditfastattn.models.base import PreparedModel
from plans import Method

STORED_BYTES = 2**32  # of stored tensors; blocks beyond them are left out
STORED = 7  # tensors of a layer: three outputs of its attention and of its MLP, and a residual


class Parts(ABC):
    """One way of running a model. ``layers``: how many blocks a thunk of a block's row runs.

    Args:
        batch: rows of a call, both guidance branches counted.
    """

    def __init__(self, adapter: PreparedModel, batch: int, tokens: int, context: Context) -> None:
        self.adapter, self.context, self.batch = adapter, context, batch
        spec = adapter.spec()
        self.shape = (batch, tokens, spec.heads, spec.head_dim)
        self.given = adapter.example(batch, tokens)
        self.call = adapter.read_call((), self.given)
        each = STORED * adapter.dtype.itemsize * batch * tokens * spec.width
        self.layers = max(1, min(len(adapter.blocks), STORED_BYTES // each))

    @cached_property
    def _stored(self) -> list[list[Tensor]]:
        """Of each layer, STORED tensors (B, N, C), shared by all rows."""
        batch, tokens, heads, head_dim = self.shape
        like = torch.empty((batch, tokens, heads * head_dim), dtype=self.adapter.dtype, device=self.adapter.device)
        return [[torch.randn_like(like) for _ in range(STORED)] for _ in range(self.layers)]

    def stored(self, layer: int, row: Row) -> tuple[LayerCache, LayerCache]:
        """What a layer's attention and its MLP find stored, and may write to."""
        tensors = self._stored[layer]
        residual = tensors[0].unflatten(2, self.shape[2:])
        half = row.attn.store_residual is Rows.CONDITIONAL_HALF or row.attn.method is Method.WA_RS_ASC
        kept = residual[: self.batch // 2] if half else residual
        half = row.mlp.store_output is Rows.CONDITIONAL_HALF
        fed = tensors[4][: self.batch // 2] if half else tensors[4]
        return LayerCache(tensors[1], kept, (tensors[2], tensors[3])), LayerCache(fed, None, (tensors[5], tensors[6]))

    def prepare(self, row: Row) -> Thunk:
        """A function that runs a row, without arguments."""
        if row.permutes:
            return self._permuted()
        return self._block(row) if row.model is None else self._model(row.model)

    @abstractmethod
    def _block(self, row: Row) -> Thunk: ...

    @abstractmethod
    def _model(self, cell: Cell) -> Thunk: ...

    @abstractmethod
    def step_rows(self) -> Mapping[str, float]:
        """Microseconds of the rows that are no thunks: STEP and BEGIN, and what there is of CALL and the host's."""

    def _permuted(self) -> Thunk:
        """Tokens into an order and back."""
        hidden = self._stored[0][0]
        order = torch.randperm(self.shape[1]).to(hidden.device)

        def run() -> Any:
            return hidden.index_select(1, order).index_select(1, order)

        return run
