"""One block in pieces, with everything at hand that does not depend on the latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditfastattn.cache import Cell, LayerCache
from ditfastattn.execute import Context, computed_rows, core_of
from ditfastattn.forecast import fitted
from ditfastattn.layout import Layout
from ditfastattn.models.base import PreparedBlock
from ditfastattn.models.parts import WithParts
from ditfastattn.pieces import Pieces, Source, Span
from plans import Method, SiteName

ROW = 4  # numbers kept for a forecast, which has 3 at most: every row begins at a multiple of 16 bytes


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


@dataclass(frozen=True)
class Stored:
    """What one layer of a site does, and the tensors that it reads or writes to.

    Attributes:
        cache: what the step reads; what it stores where ``into`` is None.
        into: tensors that what is stored is written to.
        weights: of a forecast, as a row of :func:`weights_tensor`, so that one captured step serves any.
    """

    cell: Cell
    cache: LayerCache
    into: LayerCache | None = None
    weights: Tensor | None = None

    def reused(self, pieces: Pieces, batch: int, layout: Layout) -> Tensor:
        """What AST and its forecasts give: (B, ...), or (B/2, ...) for both halves."""
        outputs, weights = self.read(batch, layout)
        return outputs[0] if weights is None else pieces.extrapolate(outputs, weights)

    def read(self, batch: int, layout: Layout) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """What AST and its forecasts are made of: stored outputs of one size, and a forecast's row of weights."""
        outputs = self.cache.outputs[: self.cell.method.outputs_read]
        assert len(outputs) == self.cell.method.outputs_read, f"{self.cell.method} without stored outputs"
        if not self.cell.method.forecasts:
            return tuple(outputs), None
        weights = weights_tensor([self.cell.weights], outputs[0])[0] if self.weights is None else self.weights
        return tuple(fitted(outputs, batch, layout)), weights

    def keep(self, output: Tensor) -> None:
        """Stores the output of a step that a later one reads."""
        if self.into is None:
            self.cache.keep(output, self.cell.older)
            return
        assert self.into.output is not None
        if self.into.output is not output:
            self.into.output.copy_(output)


def weights_tensor(rows: Sequence[tuple[float, ...]], like: Tensor) -> Tensor:
    """The weights of forecasts as rows (R, 4) where ``like`` is, as wide as their arithmetic, padded by zeros."""
    padded = [(*row, *[0.0] * (ROW - len(row))) for row in rows]
    return torch.tensor(padded, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def run_prepared_block(
    inputs: BlockInputs, attention: Stored, context: Context, pieces: Pieces, hidden: Tensor
) -> Tensor:
    """One block of which attention alone has a cell: :func:`ditfastattn.execute.run_block`, in pieces.

    ``hidden`` and what it returns are (B, N, C).
    """
    output = prepared_attention(inputs, attention, context, pieces, hidden)
    return pieces.finish(inputs.block, hidden, output, inputs.modulation, inputs.shared)


def run_prepared_parts(
    inputs: BlockInputs,
    attention: Stored,
    parts: Mapping[SiteName, Stored],
    context: Context,
    pieces: Pieces,
    hidden: Tensor,
) -> Tensor:
    """One block whose cross-attention or MLP has a cell of its own: :func:`ditfastattn.execute.run_parts`."""
    block, batch, layout = inputs.block, hidden.shape[0], context.layout
    assert isinstance(block, WithParts)
    methods = [stored.cell.method for stored in (attention, *parts.values())]
    # Where attention is not computed, what is stored can be read and extrapolated in the one piece that is left.
    at_once = all(method.reuses_output for method in methods) and any(method.forecasts for method in methods)

    def source(stored: Stored) -> Source:
        return Source(*stored.read(batch, layout)) if at_once else Source((stored.reused(pieces, batch, layout),))

    if at_once:
        output = source(attention)
    else:
        output = Source((prepared_attention(inputs, attention, context, pieces, hidden),))
        if all(map(_is_plain, parts.values())):
            return pieces.finish(block, hidden, *output.outputs, inputs.modulation, inputs.shared)
    told: list[Source | Span | None] = []
    computed = []
    for site in block.parts:
        stored = parts.get(site)
        if stored is None or _is_plain(stored):
            told.append(None)
        elif stored.cell.method.reuses_output:
            told.append(source(stored))
        else:
            rows = computed_rows(stored.cell.method, batch, layout)
            told.append(Span(rows.start, rows.stop))
            computed.append(stored)
    finished, outputs = pieces.finish_parts(block, hidden, output, inputs.modulation, inputs.shared, tuple(told))
    for stored, made in zip(computed, outputs, strict=True):
        if stored.cell.store_output:
            stored.keep(made)
    return finished


def _is_plain(stored: Stored) -> bool:
    """Computed, and read by no later step."""
    return stored.cell.method is Method.FULL and not stored.cell.store_output


def prepared_attention(inputs: BlockInputs, stored: Stored, context: Context, pieces: Pieces, hidden: Tensor) -> Tensor:
    """Attention after the out-projection: (B, N, C), or (B/2, N, C) for both halves."""
    cell, into, batch = stored.cell, stored.into, hidden.shape[0]
    if cell.method.reuses_output:
        return stored.reused(pieces, batch, context.layout)
    q, k, v = inputs.qkv(pieces, hidden, computed_rows(cell.method, batch, context.layout))
    core = core_of(cell, q, k, v, stored.cache, batch, context, into.residual if into else None)
    output = inputs.block.project(core, out=into.output if into and cell.store_output else None)
    if cell.store_output:
        stored.keep(output)
    return output


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
