"""Each method on whole blocks against the block's formula written out in float64."""

import math
from typing import Any

import pytest
import torch
from small_models import small_transformer
from torch import Tensor

from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.execute import Context, run_block
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from plans import Method, Window

WINDOW = Window(left=3, right=1)
WHOLE, HALF = Rows.WHOLE_BATCH, Rows.CONDITIONAL_HALF


def layer_norm(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def linear(x: Tensor, module: Any) -> Tensor:
    return x @ module.weight.T + module.bias


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, window: Window | None) -> Tensor:
    """(B, N, C) with 2 heads of 24."""
    batch, tokens, width = q.shape
    q, k, v = (t.reshape(batch, tokens, 2, 24).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(24)
    if window is not None:
        for i in range(tokens):
            for j in range(tokens):
                if j < i - window.left or j > i + window.right:
                    scores[..., i, j] = -math.inf
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)


class Formula:
    """The DiT block (arXiv 2212.09748, Fig. 3) with the five methods, remembering what a block must remember."""

    def __init__(self, block: Any, layout: Layout) -> None:
        self.block, self.layout = block, layout
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
        full, window = softmax_attention(q, k, v, None), softmax_attention(q, k, v, WINDOW)
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


SEQUENCES = [
    [("FULL", {"store_output": WHOLE}), ("AST", {}), ("AST", {})],
    [("FULL", {"store_residual": WHOLE}), ("WA_RS", {}), ("WA_RS_ASC", {})],
    [("FULL", {"store_residual": HALF}), ("WA_RS_ASC", {"store_output": HALF}), ("AST", {})],
    [("ASC", {"store_output": HALF, "store_residual": HALF}), ("AST", {}), ("WA_RS", {}), ("WA_RS_ASC", {})],
    [
        ("FULL", {"store_residual": WHOLE}),
        ("ASC", {"store_residual": HALF}),
        ("WA_RS", {"store_output": WHOLE}),
        ("AST", {}),
    ],
]


@pytest.mark.parametrize("layout", [Layout.COND_FIRST, Layout.UNCOND_FIRST])
@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda s: "-".join(name for name, _ in s))
@torch.no_grad()
def test_methods_equal_the_formula(sequence: list[tuple[str, dict[str, Rows]]], layout: Layout) -> None:
    model = small_transformer(layers=1).double()
    block = adapt(model).blocks[0]
    formula = Formula(block.module, layout)
    cache, context = LayerCache(), Context(SDPA(), WINDOW, layout)
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([3, 7, 1000, 1000])
    for step, (name, stores) in enumerate(sequence):
        x = torch.randn(4, 16, 48, generator=generator, dtype=torch.float64)
        t = torch.full((4,), 900 - 50 * step)
        cell = Cell(Method[name], **stores)
        ours = run_block(block, cell, cache, context, x, timestep=t, class_labels=labels)
        expected = formula(x, Method[name], t, labels)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_uncompressed_block_is_bit_identical_to_diffusers() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = small_transformer(layers=1).to(dtype)
        block = adapt(model).blocks[0]
        x = torch.randn(4, 16, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
        call = {"timestep": torch.full((4,), 500), "class_labels": torch.tensor([3, 7, 1000, 1000])}
        cell = Cell(Method.FULL, store_output=WHOLE, store_residual=WHOLE)
        ours = run_block(block, cell, LayerCache(), Context(SDPA(), WINDOW, Layout.COND_FIRST), x, **call)
        assert torch.equal(ours, block.module(x, **call))


def test_guidance_sharing_needs_both_halves() -> None:
    with pytest.raises(ValueError, match="even batch"):
        Layout.COND_FIRST.conditional_rows(3)
    with pytest.raises(ValueError, match="no conditional half"):
        Layout.NONE.conditional_rows(4)
