"""The elementwise work of an adaLN block: as diffusers writes it, or in as few passes as the GPU needs."""

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditfastattn.kernels.block_ops import linear_gelu, modulated_norm, residual_norm
from ditfastattn.layout import both_halves


class Plain:
    """Operation by operation in diffusers' order: an all-FULL plan in eager mode is bit-identical to no plan."""

    def modulated(self, norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """norm(x) (1 + scale) + shift; x (B, N, C), the modulation (B, 1, C)."""
        normed: Tensor = norm(x)
        return normed * (1 + scale) + shift

    def add_gated(self, hidden: Tensor, update: Tensor, gate: Tensor) -> Tensor:
        """hidden + gate * update; ``update`` (B, N, C), or (B/2, N, C) for both guidance branches."""
        return gate * _for_all(update, hidden) + hidden

    def add(self, hidden: Tensor, update: Tensor) -> Tensor:
        """hidden + update; ``update`` as in :meth:`add_gated`."""
        return _for_all(update, hidden) + hidden

    def add_gated_modulated(
        self, norm: nn.Module, hidden: Tensor, update: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both of the above: the sum and its modulated norm."""
        hidden = self.add_gated(hidden, update, gate)
        return hidden, self.modulated(norm, hidden, shift, scale)

    def feed_forward(self, module: Any, x: Tensor) -> Tensor:
        fed: Tensor = module(x)
        return fed

    def qkv(self, attention: Any, x: Tensor, joint: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, N, H, D) each. ``joint`` is weight (3 C, C) and bias (3 C,) of all three projections, or empty."""
        heads = (x.shape[0], x.shape[1], attention.heads, -1)
        if joint:
            q, k, v = F.linear(x, *joint).chunk(3, dim=2)
        else:
            q, k, v = attention.to_q(x), attention.to_k(x), attention.to_v(x)
        return q.view(heads), k.view(heads), v.view(heads)


class Fused(Plain):
    """One pass for each, by our own kernels, where a part is what they compute; the same to rounding."""

    def modulated(self, norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        if not _is_bare(norm):
            return super().modulated(norm, x, shift, scale)
        normed: Tensor = modulated_norm(x, shift, scale, norm.eps)
        return normed

    def add_gated_modulated(
        self, norm: nn.Module, hidden: Tensor, update: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not _is_bare(norm):
            return super().add_gated_modulated(norm, hidden, update, gate, shift, scale)
        summed, normed = residual_norm(hidden, update, gate, shift, scale, norm.eps)
        return summed, normed

    def feed_forward(self, module: Any, x: Tensor) -> Tensor:
        first, rest = _gelu_mlp(module)
        if first is None or not is_plain(first) or first.bias is None:
            return super().feed_forward(module, x)
        x = linear_gelu(x, first.weight, first.bias)
        for layer in rest:
            x = layer(x)
        return x


PLAIN, FUSED = Plain(), Fused()
HAS_TRITON, INTERPRETED = find_spec("triton") is not None, os.environ.get("TRITON_INTERPRET") == "1"


def arithmetic_for(x: Tensor) -> Plain:
    """What a prepared block on the device of ``x`` uses."""
    return FUSED if HAS_TRITON and (x.is_cuda or INTERPRETED) else PLAIN


def _for_all(update: Tensor, hidden: Tensor) -> Tensor:
    """An update of one guidance branch, for both."""
    return update if update.shape[0] == hidden.shape[0] else both_halves(update)


def is_plain(linear: nn.Module) -> bool:
    """A Linear whose weight is all there is to it: LoRA layers, hooks and patched forwards must be called, not read."""
    hooks = linear._forward_hooks or linear._forward_pre_hooks
    if type(linear) is not nn.Linear or hooks or "forward" in linear.__dict__:
        return False
    return type(linear.weight) is nn.Parameter and linear.weight.is_floating_point()  # quantised weights are neither


def project(linear: Any, core: Tensor, out: Tensor | None) -> Tensor:
    """linear of the heads side by side: (rows, N, H, D) -> (rows, N, C), written to ``out`` if one is given."""
    if out is not None and is_plain(linear) and linear.bias is not None:
        flat = core.flatten(2).flatten(0, 1)  # (rows * N, C)
        torch.addmm(linear.bias, flat, linear.weight.t(), out=out.flatten(0, 1))
        return out
    projected: Tensor = linear(core.flatten(2))
    return projected if out is None else out.copy_(projected)


def _gelu_mlp(module: Any) -> tuple[Any, list[nn.Module]]:
    """The Linear before a tanh GELU and what follows it, of diffusers' FeedForward or timm's Mlp; None if neither."""
    if hasattr(module, "net"):
        first = module.net[0]
        return (first.proj, list(module.net[1:])) if getattr(first, "approximate", None) == "tanh" else (None, [])
    if getattr(getattr(module, "act", None), "approximate", None) != "tanh":
        return None, []
    # Its dropouts do nothing in eval mode, which apply() asks for.
    return module.fc1, [layer for layer in (getattr(module, "norm", None), module.fc2) if layer is not None]


def _is_bare(norm: nn.Module) -> bool:
    """A layer norm over the channels without weights of its own."""
    return type(norm) is nn.LayerNorm and norm.weight is None and len(norm.normalized_shape) == 1
