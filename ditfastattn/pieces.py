"""A transformer in pieces, cut where attention kernels stand: each piece is a function of tensors, compiled once.

An attention kernel and the product after it are calls that no compiler fuses with anything, so a block cut there loses
nothing. One compilation of a piece serves all layers, steps and methods: rows and stored outputs of half a batch are
other shapes, so a plan that uses all of the paper's methods needs four compilations (two of each piece of a block).
Cross-attentions and MLPs that are reused, and forecasts, are compiled where a plan has them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditfastattn.forecast import extrapolate
from ditfastattn.models.base import PreparedBlock, PreparedModel
from ditfastattn.models.parts import WithParts


class Span(NamedTuple):
    """Rows of a batch, from the first to before the last."""

    start: int
    stop: int


class Source(NamedTuple):
    """What an output is made of: the only one, or several extrapolated by weights.

    Each (B, N, C), or all (B/2, N, C) for both halves.
    """

    outputs: tuple[Tensor, ...]
    weights: Tensor | None = None


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


def finish_parts(
    block: WithParts[Any],
    hidden: Tensor,
    attention: Source,
    modulation: Tensor,
    context: tuple[Tensor, ...],
    parts: Sequence[Source | Span | None],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`finish` with every part of the block computed for some rows alone, or made of what is stored.

    What is extrapolated here is one pass over what is stored: nothing is written in between.

    Args:
        attention: its output, as in :func:`finish`, or what it is made of.
        parts: of ``block.parts``; None is computed for all rows, and its output not needed afterwards.

    Returns:
        The block's end (B, N, C), and the outputs of the parts that are a `Span`, before they are gated and added.
    """
    state = block.state(hidden, modulation, context, ())  # type: ignore[attr-defined]
    batch, output, computed = hidden.shape[0], _made(attention), []
    hidden = block.stream(state)
    for site, part in zip(block.parts, parts, strict=True):
        if isinstance(part, Source):
            hidden, _ = block.enter(site, state, hidden, output, None)
            output = _made(part)
            continue
        rows = slice(None) if part is None or part == (0, batch) else slice(*part)
        hidden, x = block.enter(site, state, hidden, output, rows)
        assert x is not None
        output = block.compute(site, state, x, rows)
        if part is not None:
            computed.append(output)
    return block.leave(state, hidden, output), tuple(computed)


def _made(source: Source) -> Tensor:
    return source.outputs[0] if source.weights is None else extrapolate(source.outputs, source.weights)


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
    finish_parts: Callable[..., tuple[Tensor, tuple[Tensor, ...]]] = finish_parts
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
