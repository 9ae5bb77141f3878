"""Running one block by one method. Session and calibration both go through here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ditfastattn.attention import attention_core, fit_rows
from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.forecast import reused_output
from ditfastattn.kernels.base import Kernel
from ditfastattn.layout import Layout, both_halves
from ditfastattn.models.base import BlockAdapter
from ditfastattn.models.parts import WithParts
from plans import Method, SiteName, Window


@dataclass(frozen=True)
class Context:
    """What is the same for every block of one site in a run."""

    kernel: Kernel
    window: Window
    layout: Layout


Contexts = Mapping[SiteName, Context]
COMPUTED = Cell(Method.FULL)  # of a part that the plan does not speak of


def run_block(
    block: BlockAdapter[Any], cell: Cell, cache: LayerCache, context: Context, *args: Any, **kwargs: Any
) -> Tensor:
    """One block by ``cell.method``; reads and fills ``cache`` as the cell says. Returns hidden states (B, N, C)."""
    state = block.begin(*args, skip_attention=cell.method.reuses_output, **kwargs)
    return block.finish(state, attention_output(block, state, cell, cache, context))


def run_parts(
    block: WithParts[Any],
    attention: tuple[Cell, LayerCache],
    parts: Mapping[SiteName, tuple[Cell, LayerCache]],
    context: Context,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """One block whose cross-attention or MLP has a cell and a cache of its own. Returns hidden states (B, N, C).

    ``parts``: of those that the plan has; the others are FULL.
    """
    state = block.begin(*args, skip_attention=attention[0].method.reuses_output, **kwargs)
    output = attention_output(block, state, *attention, context)
    hidden = block.stream(state)
    batch = hidden.shape[0]
    for site in block.parts:
        cell, cache = parts.get(site, (COMPUTED, LayerCache()))
        rows = part_rows(cell.method, state.hidden.shape[0], context.layout)
        hidden, x = block.enter(site, state, hidden, output, rows)
        if x is None or rows is None:
            output = fit_rows(reused_output(cell, cache, batch, context.layout), batch, batch, context.layout)
            continue
        output = block.compute(site, state, x, rows)  # (rows, N, C)
        if cell.store_output:
            cache.keep(output, cell.older)
        if cell.method.shares_guidance:
            output = both_halves(output)
    return block.leave(state, hidden, output)


def part_rows(method: Method, batch: int, layout: Layout) -> slice | None:
    """The rows that a part computes, as the attention before it counts them: none, the conditional half, or all."""
    if method.reuses_output:
        return None
    return layout.conditional_rows(batch) if method.shares_guidance else slice(None)


def attention_output(block: BlockAdapter[Any], state: Any, cell: Cell, cache: LayerCache, context: Context) -> Tensor:
    """Self-attention after the out-projection, for both guidance branches: (B, N, C)."""
    batch = state.hidden.shape[0]
    if cell.method.reuses_output:
        return fit_rows(reused_output(cell, cache, batch, context.layout), batch, batch, context.layout)

    q, k, v = block.qkv(state, computed_rows(cell.method, batch, context.layout))  # (rows, N, H, D)
    output = block.project(core_of(cell, q, k, v, cache, batch, context))  # (rows, N, C)
    if cell.store_output:
        cache.keep(output, cell.older)
    return both_halves(output) if cell.method.shares_guidance else output


def computed_rows(method: Method, batch: int, layout: Layout) -> slice:
    """The rows of a batch that a method computes: the conditional half, or all."""
    return layout.conditional_rows(batch) if method.shares_guidance else slice(0, batch)


def core_of(
    cell: Cell,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    batch: int,
    context: Context,
    out: Tensor | None = None,
) -> Tensor:
    """Attention before the out-projection by ``cell.method``; reads and stores the residual as the cell says.

    Args:
        q, k, v: (rows, N, H, D), of a batch of ``batch`` rows.
        out: where a residual is written to; without it, it is stored where it was made.

    Returns:
        (rows, N, H, D).
    """
    residual = None
    if cell.method.windowed:
        assert cache.residual is not None, "a windowed method without a stored residual"
        residual = fit_rows(cache.residual, q.shape[0], batch, context.layout)
    core = attention_core(context.kernel, cell.method, q, k, v, context.window, residual)
    if cell.store_residual:
        cache.residual = residual_to_store(cell.store_residual, q, k, v, core, batch, context, out)
    return core


def residual_to_store(
    stored: Rows, q: Tensor, k: Tensor, v: Tensor, full: Tensor, batch: int, context: Context, out: Tensor | None = None
) -> Tensor:
    """O_full - O_window (DiTFastAttn, Eq. 1) of the rows to be stored; q, k, v, full are (rows, N, H, D).

    Written to ``out`` if one is given.
    """
    if stored is Rows.CONDITIONAL_HALF and q.shape[0] == batch:
        rows = context.layout.conditional_rows(batch)
        q, k, v, full = q[rows], k[rows], v[rows], full[rows]
    return context.kernel.residual(q, k, v, full, context.window, out)
