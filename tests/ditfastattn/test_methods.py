"""Each method on whole blocks against the block's formula written out in float64."""

import pytest
import torch
from block_formula import Formula, band
from small_models import small_transformer

from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.execute import Context, run_block
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from plans import Method, Window

WINDOW = Window(left=3, right=1)
WHOLE, HALF = Rows.WHOLE_BATCH, Rows.CONDITIONAL_HALF


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
    formula = Formula(block.module, layout, band(WINDOW, range(16)))
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
