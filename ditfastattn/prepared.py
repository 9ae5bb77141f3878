"""One block in pieces, with everything at hand that does not depend on the latents."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditfastattn.cache import Cell, LayerCache
from ditfastattn.execute import Context, computed_rows, core_of
from ditfastattn.models.base import PreparedBlock
from ditfastattn.pieces import Pieces


@dataclass(frozen=True)
class BlockInputs:
    """What a block reads besides hidden states, for a batch of B rows."""

    block: PreparedBlock[Any]
    modulation: Tensor  # (B, K, C), at this step
    shared: tuple[Tensor, ...]  # what every block reads (prompts), (B, ...) each
    joint: tuple[Tensor, ...]  # weights put together (JointWeights)

    def qkv(self, pieces: Pieces, hidden: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (rows, N, H, D) of some rows of ``hidden`` (B, N, C)."""
        shared = tuple(tensor[rows] for tensor in self.shared)
        return pieces.qkv(self.block, hidden[rows], self.modulation[rows], shared, self.joint)


def run_prepared_block(
    inputs: BlockInputs,
    cell: Cell,
    cache: LayerCache,
    context: Context,
    pieces: Pieces,
    hidden: Tensor,
    into: LayerCache | None = None,
) -> Tensor:
    """One block by ``cell.method``: what :func:`ditfastattn.execute.run_block` computes, in pieces.

    Args:
        hidden: (B, N, C).
        into: tensors that what is stored is written to; without them it is stored where it was made.

    Returns:
        (B, N, C).
    """
    batch = hidden.shape[0]
    if cell.method.reuses_output:
        assert cache.output is not None, "AST without a stored output"
        return pieces.finish(inputs.block, hidden, cache.output, inputs.modulation, inputs.shared)
    q, k, v = inputs.qkv(pieces, hidden, computed_rows(cell.method, batch, context.layout))
    core = core_of(cell, q, k, v, cache, batch, context, into.residual if into else None)
    output = inputs.block.project(core, out=into.output if into and cell.store_output else None)
    if cell.store_output:
        cache.output = output
    return pieces.finish(inputs.block, hidden, output, inputs.modulation, inputs.shared)


class JointWeights:
    """Copies of a block's weights, concatenated, so that one large product takes the place of several.

    Made anew at every run: a weight changed in place since the last one would else be used as it was.
    """

    def __init__(self, groups: list[list[Tensor]]) -> None:
        self._sources = [weight for group in groups for weight in group]
        self.tensors = tuple(torch.cat(group) for group in groups)
        parts = [t.split([w.shape[0] for w in g]) for t, g in zip(self.tensors, groups, strict=True)]
        self._copies = [part for split in parts for part in split]

    def refresh(self) -> None:
        if self._sources:
            torch._foreach_copy_(self._copies, self._sources)
