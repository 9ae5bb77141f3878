"""One block of a real model on random input, made ready to be run by a cell again and again.

A way of running blocks is a :data:`Prepare`: for a cell it returns a function without arguments that runs one block by
it, its inputs and stored tensors at hand. :func:`eager_block` is the way of ``apply(pipe, plan)``, :func:`piece_block`
that of ``apply(pipe, plan, compile=True)`` when it is given compiled pieces.
"""

from collections.abc import Callable
from typing import Any

import torch

from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.cost.timing import Thunk
from ditfastattn.execute import Context, run_block
from ditfastattn.install import Overrides
from ditfastattn.models.base import PreparedModel
from ditfastattn.pieces import Pieces
from ditfastattn.prepared import BlockInputs, JointWeights, run_prepared_block

Prepare = Callable[[Cell], Thunk]


def eager_block(adapter: PreparedModel, batch: int, tokens: int, context: Context) -> Prepare:
    """The first block by :func:`ditfastattn.execute.run_block`, on the arguments that the model calls it with."""
    args, kwargs = _block_arguments(adapter, adapter.example(batch, tokens))
    block, hidden = adapter.blocks[0], args[0]

    def prepare(cell: Cell) -> Thunk:
        cache = LayerCache()
        if cell.method.windowed:
            q, _, _ = block.qkv(block.begin(*args, skip_attention=False, **kwargs), _rows(cell, batch, context))
            cache.residual = torch.randn_like(q)
        if cell.method.reuses_output:
            cache.output = torch.randn_like(hidden)
        return lambda: run_block(block, cell, cache, context, *args, **kwargs)

    return prepare


def piece_block(
    adapter: PreparedModel, batch: int, tokens: int, context: Context, pieces: Pieces | None = None
) -> Prepare:
    """The first block in pieces, as prepared steps run it; ``pieces`` may be compiled."""
    pieces = pieces or Pieces()
    block, call = adapter.blocks[0], adapter.read_call((), adapter.example(batch, tokens))
    hidden = pieces.embed(adapter, call.latents, None)  # (B, N, C)
    timesteps = torch.as_tensor(call.timestep).flatten()[:1]
    modulation = adapter.conditioning(timesteps, call).blocks[0, 0].clone()  # (B, K, C)
    others, joint = adapter.context(call), JointWeights(block.joint_weights()).tensors

    inputs = BlockInputs(block, modulation, others, joint)

    def prepare(cell: Cell) -> Thunk:
        q = inputs.qkv(pieces, hidden, _rows(cell, batch, context))[0]
        kept = q[: batch // 2 if cell.store_residual is Rows.CONDITIONAL_HALF else batch]
        residual = torch.randn_like(q) if cell.method.windowed else torch.empty_like(kept)
        stored = LayerCache(torch.randn_like(hidden), residual)
        return lambda: run_prepared_block(inputs, cell, stored, context, pieces, hidden, into=stored)

    return prepare


def _rows(cell: Cell, batch: int, context: Context) -> slice:
    return context.layout.conditional_rows(batch) if cell.method.shares_guidance else slice(0, batch)


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
