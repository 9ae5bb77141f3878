"""Smaller patches, begun from a model of larger ones."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch.nn.functional import avg_pool2d, interpolate

from ditfastattn.demo.model import build_transformer
from ditfastattn.demo.refine import refine


def trained(sample_size: int, patch: int, seed: int = 0) -> DiTTransformer2DModel:
    """Weights that depend on neither the sample size nor the seed's use elsewhere, none of them zero."""
    model = build_transformer(layers=3, heads=2, head_dim=8, sample_size=sample_size, patch=patch)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(0.2 * torch.randn(weights.shape, generator=generator))
    return model.double().requires_grad_(False)


@pytest.mark.parametrize(("patch", "k"), [(1, 2), (2, 2), (1, 4), (2, 1)])
def test_it_is_the_trained_model_on_the_enlarged_image(patch: int, k: int) -> None:
    tokens = 4  # along one side
    size = tokens * patch
    model = refine(trained(size, patch * k), [0, 1, 2], patch).double()
    assert (model.config.sample_size, model.config.patch_size, model.training) == (size, patch, False)
    x = torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = {"timestep": torch.tensor([3, 700]), "class_labels": torch.tensor([1, 1000])}
    # The refined weights are float32.
    large = trained(size * k, patch * k)  # as many tokens, so the same positions
    expected = large(interpolate(x, scale_factor=k, mode="nearest"), **given).sample
    torch.testing.assert_close(
        model(x, **given).sample, avg_pool2d(expected, k), atol=1e-6, rtol=1e-5
    )  # weights are float32


def test_it_takes_the_blocks_it_is_told_in_their_order() -> None:
    old = trained(8, 2)
    new = refine(old, [2, 0], 1)
    assert new.config.num_layers == 2
    for block, source in zip(new.transformer_blocks, (2, 0), strict=True):
        expected = old.transformer_blocks[source].state_dict()
        assert all(torch.equal(value.double(), expected[name]) for name, value in block.float().state_dict().items())


@pytest.mark.parametrize(
    ("blocks", "patch", "message"),
    [([0], 3, "patch 3 does not divide"), ([3], 1, "has blocks 0 to 2"), ([], 1, "has blocks 0 to 2")],
)
def test_it_says_what_does_not_fit(blocks: list[int], patch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refine(trained(12, 4), blocks, patch)
