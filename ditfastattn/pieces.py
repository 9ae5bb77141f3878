"""A transformer in pieces, cut where attention kernels stand: each piece is a function of tensors, compiled once.

An attention kernel and the product after it are calls that no compiler fuses with anything, so a block cut there loses
nothing. One compilation of a piece serves all layers, steps and methods: rows and stored outputs of half a batch are
other shapes, so a plan that uses everything needs four compilations (two of each piece of a block).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ditfastattn.models.base import PreparedBlock, PreparedModel


def qkv(
    block: PreparedBlock[Any],
    hidden: Tensor,
    modulation: Tensor,
    context: tuple[Tensor, ...],
    joint: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (rows, N, H, D) of ``hidden`` (rows, N, C)."""
    return block.qkv(block.state(hidden, modulation, context, joint), slice(None))


def finish(
    block: PreparedBlock[Any], hidden: Tensor, output: Tensor, modulation: Tensor, context: tuple[Tensor, ...]
) -> Tensor:
    """The block's end: (B, N, C). ``output`` is the attention's, (B, N, C), or (B/2, N, C) for both halves."""
    return block.finish(block.state(hidden, modulation, context, ()), output)


def embed(adapter: PreparedModel, latents: Tensor, order: Tensor | None) -> Tensor:
    """The first block's input (B, N, C), its tokens in the ``order`` (N,).

    Contiguous, as every block's output is: the first block then shares the compilation of the others.
    """
    hidden = adapter.embed(latents).contiguous()
    return hidden if order is None else hidden.index_select(1, order)


def head(
    adapter: PreparedModel, hidden: Tensor, modulation: Tensor, height: int, width: int, order: Tensor | None
) -> Tensor:
    """The model output from the last block's (B, N, C), its tokens put back by the ``order`` (N,)."""
    if order is not None:
        hidden = hidden.index_select(1, order)
    return adapter.head(hidden, modulation, height, width)


@dataclass(frozen=True)
class Pieces:
    """The functions above, or their compiled versions."""

    qkv: Callable[..., tuple[Tensor, Tensor, Tensor]] = qkv
    finish: Callable[..., Tensor] = finish
    embed: Callable[..., Tensor] = embed
    head: Callable[..., Tensor] = head


# torch gives up at the eighth compilation of a function in a process, which is the fifth shape of these.
LIMITS = {"recompile_limit": 2**12, "accumulated_recompile_limit": 2**16}


def compiled_pieces() -> Pieces:
    """Every piece compiled as a whole for the exact shapes it meets, however many."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        traced = torch.compile(function, fullgraph=True, dynamic=False)

        @wraps(function)
        def call(*args: Any) -> Any:
            with torch._dynamo.config.patch(LIMITS):
                return traced(*args)

        return call

    return Pieces(compiled(qkv), compiled(finish), compiled(embed), compiled(head))
