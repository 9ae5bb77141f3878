"""The DiT block and the five methods written out plainly, to test the real ones against in float64."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ditfastattn.layout import Layout
from plans import Method, Window


def band(window: Window, places: Sequence[int]) -> Tensor:
    """(N, N) bool: which keys token i of the raster sees if token t stands at ``places[t]`` of the order."""
    visible = [[here - window.left <= there <= here + window.right for there in places] for here in places]
    return torch.tensor(visible)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def linear(x: Tensor, module: Any) -> Tensor:
    return x @ module.weight.T + module.bias


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """(B, N, C) with 2 heads of 24."""
    batch, tokens, width = q.shape
    q, k, v = (t.reshape(batch, tokens, 2, 24).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(24)
    if visible is not None:
        scores[..., ~visible] = -math.inf
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)


class Formula:
    """The DiT block (arXiv 2212.09748, Fig. 3) with the five methods, remembering what a block must remember."""

    def __init__(self, block: Any, layout: Layout, visible: Tensor) -> None:
        self.block, self.layout, self.visible = block, layout, visible
        self.output: Tensor | None = None
        self.residual: Tensor | None = None  # of the whole batch

    def __call__(self, x: Tensor, method: Method, t: Tensor, labels: Tensor) -> Tensor:
        block = self.block
        emb = block.norm1.emb(t, labels, hidden_dtype=x.dtype)
        parts = linear(emb * emb.sigmoid(), block.norm1.linear)[:, None].chunk(6, dim=2)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        if method is not Method.AST:
            self.output = self.attend(layer_norm(x, 1e-6) * (1 + scale_a) + shift_a, method)
        assert self.output is not None
        x = x + gate_a * self.output
        hidden = layer_norm(x, block.norm3.eps) * (1 + scale_m) + shift_m
        hidden = torch.nn.functional.gelu(linear(hidden, block.ff.net[0].proj), approximate="tanh")
        return x + gate_m * linear(hidden, block.ff.net[2])

    def attend(self, x: Tensor, method: Method) -> Tensor:
        attention = self.block.attn1
        q, k, v = (linear(x, m) for m in (attention.to_q, attention.to_k, attention.to_v))
        full, window = softmax_attention(q, k, v, None), softmax_attention(q, k, v, self.visible)
        if method is Method.FULL:
            core, self.residual = full, full - window
        elif method is Method.ASC:
            core, self.residual = self.share(full), self.share(full - window)
        else:
            assert self.residual is not None
            core = window + self.residual
            if method is Method.WA_RS_ASC:
                core = self.share(core)
        return linear(core, attention.to_out[0])

    def share(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2)
        conditional = first if self.layout is Layout.COND_FIRST else second
        return torch.cat([conditional, conditional])
