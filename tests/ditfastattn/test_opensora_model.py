"""STDiT2 against its formula in float64, and against what is known of the published checkpoint."""

import math
import re

import pytest
import torch
from opensora_formula import stdit2
from small_opensora import WIDTH, WORDS, sizes, small_stdit2
from torch import Tensor

from ditfastattn.opensora import STDiT2
from ditfastattn.opensora.blocks import attend

LINEARS = {  # of every block of the XL/2: (out, in), from hpcaitech/Open-Sora's blocks.py and timm's Mlp
    "attn.qkv": (3456, 1152),
    "attn.proj": (1152, 1152),
    "attn_temp.qkv": (3456, 1152),
    "attn_temp.proj": (1152, 1152),
    "cross_attn.q_linear": (1152, 1152),
    "cross_attn.kv_linear": (2304, 1152),
    "cross_attn.proj": (1152, 1152),
    "mlp.fc1": (4608, 1152),
    "mlp.fc2": (1152, 4608),
}
OUTER_LINEARS = {
    "t_embedder.mlp.0": (1152, 256),
    "t_embedder.mlp.2": (1152, 1152),
    "t_block.1": (6912, 1152),
    "t_block_temp.1": (3456, 1152),
    "y_embedder.y_proj.fc1": (1152, 4096),
    "y_embedder.y_proj.fc2": (1152, 1152),
    "csize_embedder.mlp.0": (384, 256),
    "csize_embedder.mlp.2": (384, 384),
    "ar_embedder.mlp.0": (384, 256),
    "ar_embedder.mlp.2": (384, 384),
    "fl_embedder.mlp.0": (1152, 256),
    "fl_embedder.mlp.2": (1152, 1152),
    "fps_embedder.mlp.0": (1152, 256),
    "fps_embedder.mlp.2": (1152, 1152),
    "final_layer.linear": (32, 1152),
}


def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes in the checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (1152, 4, 1, 2, 2),
        "x_embedder.proj.bias": (1152,),
        "y_embedder.y_embedding": (200, 4096),
        "rope.freqs": (36,),
        "final_layer.scale_shift_table": (2, 1152),
    }
    linears = OUTER_LINEARS | {f"blocks.{i}.{name}": shape for i in range(28) for name, shape in LINEARS.items()}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for i in range(28):
        shapes |= {f"blocks.{i}.{a}.{n}_norm.weight": (72,) for a in ("attn", "attn_temp") for n in "qk"}
        shapes[f"blocks.{i}.scale_shift_table"] = (6, 1152)
        shapes[f"blocks.{i}.scale_shift_table_temporal"] = (3, 1152)
    return shapes


def test_names_and_shapes_are_those_of_the_published_checkpoint() -> None:
    with torch.device("meta"):
        model = STDiT2()
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == published()
    # What the hub counts in hpcai-tech/OpenSora-STDiT-v2-stage3 (float32, revision 3074d7cc95).
    assert sum(math.prod(shape) for shape in published().values()) == 768_271_300


def test_the_published_settings_are_the_defaults() -> None:
    with torch.device("meta"):
        config = STDiT2().config
    assert (config.depth, config.hidden_size, config.num_heads, config.model_max_length) == (28, 1152, 16, 200)
    with torch.device("meta"):
        assert STDiT2().x_embedder.grid(16, 30, 53) == (16, 15, 27)  # 240p: 405 tokens a frame


@pytest.mark.parametrize("legacy", [True, False])
def test_the_forward_is_the_formula(legacy: bool) -> None:
    """Two videos, another number of words each, 3 frames of 5 x 7 latents: both sides are padded."""
    model = small_stdit2(qk_norm_legacy=legacy)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 5, 7, generator=generator)
    words = torch.randn(2, 1, WORDS, WIDTH, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    told = sizes(rows=1, frames=3, height=40, width=56)
    with torch.no_grad():
        output = model(latents, torch.tensor([851, 12]), words, mask, **told)
    assert output.shape == (2, 8, 3, 5, 7) and output.dtype == torch.float32
    for row, timestep in enumerate((851, 12)):
        seen = words[row, 0][mask[row] != 0]
        expected = stdit2(model, latents[row].double(), timestep, seen, {k: v.item() for k, v in told.items()})
        torch.testing.assert_close(output[row].double(), expected, rtol=1e-4, atol=1e-4)


def test_masks_and_sizes_of_one_half_serve_both() -> None:
    model, generator = small_stdit2(), torch.Generator().manual_seed(2)
    latents = torch.randn(4, 4, 2, 6, 8, generator=generator)
    words = torch.randn(4, 1, WORDS, WIDTH, generator=generator)
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
    with torch.no_grad():
        short = model(latents, torch.full((4,), 5), words, mask, **sizes(2))
        full = model(latents, torch.full((4,), 5), words, mask.repeat(2, 1), **sizes(4))
    torch.testing.assert_close(short, full, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="3 rows do not fit a batch of 4"):
        model(latents, torch.full((4,), 5), words, mask, **sizes(3))
    with pytest.raises(ValueError, match="x_mask"):
        model(latents, torch.full((4,), 5), words, mask, torch.ones(4, 2), **sizes(4))


def test_the_halves_of_a_batch_stay_contiguous_in_both_attentions() -> None:
    """Row r of what spatial and temporal attention read comes from the first half iff r is in the first half."""
    model = small_stdit2()
    block = model.blocks[0]
    hidden = torch.randn(4, 3 * 5, 48)
    modulation = block.modulation(torch.randn(4, 6, 48), torch.randn(4, 3, 48))
    for read, rows in ((block.spatial_input, 3), (block.temporal_input, 5)):
        whole = read(hidden, modulation, 3)
        half = read(hidden[:2], modulation[:2], 3)
        assert whole.shape[0] == 4 * rows and torch.equal(whole[: 2 * rows], half)


def test_the_pieces_are_the_block() -> None:
    """What an adapter runs piece by piece is the block's forward, bit for bit."""
    model = small_stdit2()
    block, rotation = model.blocks[1], model.rope(3)
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden, text, six, three = random(2, 3 * 5, 48), random(2, WORDS, 48), random(2, 6, 48), random(2, 3, 48)
    modulation = block.modulation(six, three)
    q, k, v = block.attn.queries_keys_values(block.spatial_input(hidden, modulation, 3))
    assert q.shape == (6, 5, 3, 16)
    x = block.add_spatial(hidden, block.attn.project(attend(q, k, v)), modulation)
    q, k, v = block.attn_temp.queries_keys_values(block.temporal_input(x, modulation, 3), rotation)
    assert q.shape == (10, 3, 3, 16)
    x = block.add_temporal(x, block.attn_temp.project(attend(q, k, v)), modulation)
    x = block.add_feed_forward(block.add_text(x, text, None), modulation)
    assert torch.equal(x, block(hidden, text, None, six, three, rotation))


def test_without_queries_and_keys_norm_there_are_no_weights_for_it() -> None:
    names = small_stdit2(qk_norm=False).state_dict()
    assert not [name for name in names if re.search("[qk]_norm", name)]


def test_half_precision_runs_and_gives_float32() -> None:
    model = small_stdit2()
    latents, words = torch.randn(1, 4, 2, 6, 8), torch.randn(1, 1, WORDS, WIDTH)
    with torch.no_grad():
        exact = model(latents, torch.tensor([500]), words, **sizes())
        rough = model.to(torch.bfloat16)(latents, torch.tensor([500]), words, **sizes())
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_a_width_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 12"):
        STDiT2(hidden_size=50, num_heads=5)
