"""Layer norm with modulation, and with the gated update before it, in one pass over the tokens (Triton)."""

# mypy: ignore-errors
# (a kernel has no types that mypy could check, and Triton is optional)

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def norm_kernel(
    hidden, update, gate, shift, scale, summed, out,
    tokens, update_rows, gate_stride, shift_stride, scale_stride, width, eps,
    GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per token. ``update`` may hold half of the rows, which then stand for both guidance branches."""
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(hidden + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        u = tl.load(update + (row % update_rows) * width + column, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gate + batch * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
        total = (x + g * u).to(summed.dtype.element_ty)
        tl.store(summed + row * width + column, total, mask=inside)
        x = total.to(tl.float32)  # what the next pieces will read
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    spread = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    factor = tl.load(scale + batch * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + batch * shift_stride + column, mask=inside, other=0.0).to(tl.float32)
    y = centred * spread * (1 + factor) + offset
    tl.store(out + row * width + column, y.to(out.dtype.element_ty), mask=inside)


def launch(
    hidden: Tensor, update: Tensor | None, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """hidden + gate * update (``hidden`` itself without one), and its modulated norm; both (B, N, C)."""
    hidden = hidden.contiguous()
    batch, tokens, width = hidden.shape
    out = torch.empty_like(hidden)
    summed = hidden if update is None else torch.empty_like(hidden)
    source = hidden if update is None else update.contiguous()
    if hidden.numel():
        block = triton.next_power_of_2(width)
        norm_kernel[(batch * tokens,)](
            hidden, source, gate, shift, scale, summed, out,
            tokens, source.shape[0] * tokens, gate.stride(0), shift.stride(0), scale.stride(0), width, eps,
            GATED=update is not None, BLOCK=block, num_warps=min(8, max(1, block // 512)),
        )  # fmt: skip
    return summed, out
