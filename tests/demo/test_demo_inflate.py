"""A video transformer begun from one of images."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor, nn

from ditfastattn.demo import pipeline_path, transformer_path
from ditfastattn.demo.arguments import PRESETS
from ditfastattn.demo.clip_pipeline import TEXT_WIDTH, WORDS
from ditfastattn.demo.diffusion import Diffusion
from ditfastattn.demo.inflate import inflate, share
from ditfastattn.demo.model import NULL_CLASS, build_transformer
from ditfastattn.demo.train_clips import told
from ditfastattn.demo.vae import encode
from ditfastattn.opensora import STDiT2


def trained(seed: int = 0) -> DiTTransformer2DModel:
    """None of its weights is zero."""
    model = build_transformer(layers=3, heads=2, head_dim=12, sample_size=32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(0.2 * torch.randn(weights.shape, generator=generator))
    return model.requires_grad_(False)


@torch.no_grad()
def frames(model: STDiT2, x: Tensor, t: Tensor) -> Tensor:
    """Its output (B, 8, T, h, w) for x (B, 4, T, h, w), told words at random."""
    text = torch.randn(len(x), 1, WORDS, TEXT_WIDTH, generator=torch.Generator().manual_seed(2))
    return model(x, t, text, **told(x.device, x.shape[2]))


def test_each_frame_is_an_image_where_modulations_do_not_change_over_time() -> None:
    old = trained()
    for block in old.transformer_blocks:
        block.norm1.linear.weight.zero_()
    old.proj_out_1.weight.zero_()
    new = inflate(old, [2, 0])
    assert not new.training and len(new.blocks) == 2
    x = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 700])
    old.transformer_blocks = nn.ModuleList(old.transformer_blocks[block] for block in (2, 0))
    for frame in range(3):
        expected = old(x[:, :, frame], t, torch.full_like(t, NULL_CLASS)).sample
        torch.testing.assert_close(frames(new, x, t)[:, :, frame], expected, atol=2e-4, rtol=1e-3)


def test_curves_that_differ_by_a_factor_and_a_constant_are_shared_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    curve, tables = torch.randn(50, 2, 5, generator=generator), torch.randn(4, 2, 5, generator=generator)
    factors = torch.tensor([1.5, -0.7, 0.5, 2.0])[:, None].expand(4, 5)
    curves = factors[:, None, None] * (curve + tables[:, None])
    common, tables, factors = share(curves)
    torch.testing.assert_close(factors[:, None, None] * (common + tables[:, None]), curves, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(common.mean(0), torch.zeros(2, 5), atol=1e-6, rtol=0)


def test_channels_that_never_change_stay_bounded() -> None:
    curves = torch.ones(3, 10, 2, 4)
    common, tables, factors = share(curves)
    torch.testing.assert_close(factors[:, None, None] * (common + tables[:, None]), curves)
    assert tables.abs().max() <= 5.01


def test_the_demo_is_about_as_good_at_still_clips_before_any_training() -> None:
    vae = AutoencoderKL.from_pretrained(pipeline_path() / "vae").eval()
    images = torch.full((2, 64, 64, 3), 255, dtype=torch.uint8)
    images[0, 16:48, 20:44] = torch.tensor([200, 30, 60], dtype=torch.uint8)
    images[1, 8:30, 10:54] = torch.tensor([40, 90, 220], dtype=torch.uint8)
    t = torch.arange(50, 1000, 200).repeat(2)
    x0 = torch.cat(list(encode(vae, images))).repeat_interleave(len(t) // 2, 0)[:, :, None].repeat(1, 1, 2, 1, 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    xt = Diffusion().noisy(x0, noise, t)
    old = DiTTransformer2DModel.from_pretrained(transformer_path("demo")).eval().requires_grad_(False)
    blocks = PRESETS["long"]["blocks"]
    new = inflate(old, blocks)
    old.transformer_blocks = nn.ModuleList(old.transformer_blocks[block] for block in blocks)
    image = old(xt.transpose(1, 2).flatten(0, 1), t.repeat_interleave(2), torch.full((2 * len(t),), NULL_CLASS)).sample
    expected = (image.unflatten(0, (len(t), 2)).transpose(1, 2)[:, :4] - noise).square().mean()
    found = (frames(new, xt, t)[:, :4] - noise).square().mean()
    assert found < 2 * expected and found < 0.3  # noise predicted as zero is wrong by 1


@pytest.mark.parametrize("blocks", [[3], [-1], []])
def test_it_says_which_blocks_there_are(blocks: list[int]) -> None:
    with pytest.raises(ValueError, match="has blocks 0 to 2"):
        inflate(trained(), blocks)
