"""The paper's five methods on tensors: no model, no plan, no step.

DiTFastAttn (arXiv 2406.08552), Sec. 3. Queries, keys and values are (rows, N, H, D): the rows that the method
computes, which is the conditional half of the batch for ASC and WA_RS_ASC and the whole batch for FULL and WA_RS.
AST computes nothing (``ditfastattn.forecast``).
"""

from torch import Tensor

from ditfastattn.kernels.base import Kernel
from ditfastattn.layout import Layout, both_halves
from plans import Method, Window


def attention_core(
    kernel: Kernel, method: Method, q: Tensor, k: Tensor, v: Tensor, window: Window, residual: Tensor | None = None
) -> Tensor:
    """Attention output before the out-projection for one method.

    FULL and ASC: softmax(q k^T / sqrt(D)) v over all keys. WA_RS and WA_RS_ASC: the same over the keys of ``window``,
    plus ``residual`` = O_full - O_window of the last full step (DiTFastAttn, Eq. 1-2).

    Args:
        q, k, v: (rows, N, H, D).
        residual: (rows, N, H, D), needed by the windowed methods.

    Returns:
        (rows, N, H, D), the dtype of ``q``.

    Raises:
        ValueError: AST, which computes no attention, or a windowed method without its residual.
    """
    if method.reuses_output:
        raise ValueError("AST computes no attention: take the stored output")
    if not method.windowed:
        return kernel.full(q, k, v)
    if residual is None:
        raise ValueError(f"{method} needs the residual of an earlier FULL or ASC step")
    return kernel.window(q, k, v, window, add=residual)


def fit_rows(stored: Tensor, rows: int, batch: int, layout: Layout) -> Tensor:
    """A cached tensor for the rows that are asked for.

    A cache holds either the whole batch or the conditional half (whose copy stands for both halves).

    Args:
        stored: (batch or batch/2, ...).
        rows: ``batch`` or ``batch // 2`` (the conditional half).

    Returns:
        (rows, ...): the cache itself, its conditional half, or two copies of it.
    """
    if stored.shape[0] == rows:
        return stored
    if stored.shape[0] == batch:
        return stored[layout.conditional_rows(batch)]
    return both_halves(stored)
