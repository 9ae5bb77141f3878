"""Whether two ways of computing the same thing gave the same: to rounding, which a mistake exceeds by far."""

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}  # relative; float32 may be computed as TF32
HALF_TOLERANCE = 0.05


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Equal shapes, and values within the tolerance of the dtype of ``theirs``, in relative L2. Waits for the GPU."""
    if ours.shape != theirs.shape:
        return False
    computed, expected = ours.double(), theirs.double()
    return bool((computed - expected).norm() <= TOLERANCE.get(theirs.dtype, HALF_TOLERANCE) * expected.norm())


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over all keys by torch, (B, N, H, D) each."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
