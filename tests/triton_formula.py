"""The Triton kernel on random tensors, beside the formula in float64. Needs Triton."""

import math

import torch
from torch import Tensor

from ditfastattn.kernels.base import window_mask
from ditfastattn.kernels.triton_window import Config, Epilogue, launch
from plans import Window

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SMALL = Config(rows=16, keys=16, warps=4, stages=1)


def inputs(batch: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """q, k, v as slices of a packed projection (B, N, 3, H, D), and a contiguous fourth."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(batch, tokens, 3, heads, head_dim, generator=generator)
    other = torch.randn(batch, tokens, heads, head_dim, generator=generator)
    return [*packed.to(DEVICE, dtype).unbind(2), other.to(DEVICE, dtype)]


def formula(q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v in float64, written out. (B, N, H, D) -> (B, N, H, D)."""
    q, k, v = (t.double() for t in (q, k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[3])
    scores = scores.masked_fill(~window_mask(q.shape[1], window, q.device), float("-inf"))
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)


def relative_error(out: Tensor, expected: Tensor) -> float:
    error = (out.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    return float(error) if torch.isfinite(error) else math.inf


def run(tensors: list[Tensor], window: Window, epilogue: Epilogue, config: Config = SMALL) -> Tensor:
    """The kernel on an output full of NaN: what it leaves unwritten shows."""
    q, k, v, other = tensors
    out = torch.full(q.shape, float("nan"), dtype=q.dtype, device=q.device)
    launch(q, k, v, None if epilogue == Epilogue.WINDOW else other, out, window.left, window.right, epilogue, config)
    return out


def expected_of(tensors: list[Tensor], window: Window, epilogue: Epilogue) -> Tensor:
    q, k, v, other = tensors
    attended = formula(q, k, v, window)
    return {0: attended, 1: attended + other.double(), 2: other.double() - attended}[epilogue]
