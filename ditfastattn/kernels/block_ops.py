"""Operators of a prepared block that torch.compile sees as one node each, for NVIDIA GPUs.

The compiler's own layer norm reads tokens of more than 1,024 channels three times, and its products leave the
activation to a kernel of its own: on an H100 both cost more than the memory traffic they need.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("ditfastattn::modulated_norm", mutates_args=())
def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, computed in float32. x (B, N, C), shift and scale (B, 1, C)."""
    from ditfastattn.kernels.norm_triton import launch

    return launch(x, None, scale, shift, scale, eps)[1]


@torch.library.custom_op("ditfastattn::residual_norm", mutates_args=())
def residual_norm(
    hidden: Tensor, update: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """hidden + gate * update, and the modulated norm of that; ``update`` (B or B/2, N, C), halves stand for both."""
    from ditfastattn.kernels.norm_triton import launch

    return launch(hidden, update, gate, shift, scale, eps)


@torch.library.custom_op("ditfastattn::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(x W^T + b), tanh approximation, in the product's own epilogue. (..., C) -> (..., C')."""
    if not x.is_cuda:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    out = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return out.unflatten(0, x.shape[:-1])


@modulated_norm.register_fake
def _modulated_norm_fake(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@residual_norm.register_fake
def _residual_norm_fake(
    hidden: Tensor, update: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape)


@linear_gelu.register_fake
def _linear_gelu_fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
