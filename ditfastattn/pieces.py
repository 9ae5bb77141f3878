"""A transformer in pieces, cut where attention kernels stand: each piece is a function of tensors, compiled once.

An attention kernel and the product after it are calls that no compiler fuses with anything, so a block cut there loses
nothing. One compilation of a piece serves all layers, steps and methods: rows and stored outputs of half a batch are
other shapes, so a plan that uses all of the paper's methods needs four compilations (two of each piece of a block).
MLPs that are reused, and forecasts, are pieces of their own, compiled where a plan has them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ditfastattn.forecast import extrapolate
from ditfastattn.models.base import PreparedBlock, PreparedModel
from ditfastattn.models.mlp import WithMlp


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


def finish_keeping(
    block: WithMlp[Any],
    hidden: Tensor,
    output: Tensor,
    modulation: Tensor,
    context: tuple[Tensor, ...],
    rows: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """:func:`finish` with the MLP of ``rows`` (from, to) alone: the end, and the MLP's output before its gate."""
    state = _state(block, hidden, modulation, context)
    whole = rows == (0, hidden.shape[0])
    hidden, x = block.enter_mlp(state, output, slice(None) if whole else slice(*rows))
    assert x is not None
    fed = block.feed(state, x)
    return block.leave_mlp(state, hidden, fed), fed


def finish_reusing(
    block: WithMlp[Any],
    hidden: Tensor,
    output: Tensor,
    modulation: Tensor,
    context: tuple[Tensor, ...],
    fed: Tensor,
) -> Tensor:
    """:func:`finish` without the MLP, whose output before its gate is ``fed``: (B, N, C), or (B/2, N, C)."""
    state = _state(block, hidden, modulation, context)
    return block.leave_mlp(state, block.enter_mlp(state, output, None)[0], fed)


def finish_forecasting(
    block: WithMlp[Any],
    hidden: Tensor,
    outputs: Sequence[Tensor],
    weights: Tensor | None,
    modulation: Tensor,
    context: tuple[Tensor, ...],
    feds: Sequence[Tensor],
    fed_weights: Tensor | None,
) -> Tensor:
    """:func:`finish_reusing` with attention's ``outputs`` and the MLP's ``feds`` extrapolated by weights, or the only
    one of them where there are none. One pass over what is stored: nothing extrapolated is written in between."""
    output = outputs[0] if weights is None else extrapolate(outputs, weights)
    fed = feds[0] if fed_weights is None else extrapolate(feds, fed_weights)
    return finish_reusing(block, hidden, output, modulation, context, fed)


def _state(block: Any, hidden: Tensor, modulation: Tensor, context: tuple[Tensor, ...]) -> Any:
    return block.state(hidden, modulation, context, ())


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
    finish_keeping: Callable[..., tuple[Tensor, Tensor]] = finish_keeping
    finish_reusing: Callable[..., Tensor] = finish_reusing
    finish_forecasting: Callable[..., Tensor] = finish_forecasting
    extrapolate: Callable[..., Tensor] = extrapolate
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

    plain = Pieces()
    return Pieces(**{field.name: compiled(getattr(plain, field.name)) for field in fields(plain)})
