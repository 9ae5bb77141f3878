"""A facebookresearch/DiT checkpoint made here, against the native formula written out."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ditfastattn.errors import LoadError
from ditfastattn.original_dit import load_original_dit

WIDTH, HEADS, LAYERS, PATCH, GRID, CLASSES = 48, 2, 3, 2, 4, 10


def native_state(seed: int = 0, width: int = WIDTH) -> dict[str, Tensor]:
    """A checkpoint with the original's names and shapes."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.15

    state = {
        "x_embedder.proj.weight": random(width, 4, PATCH, PATCH),
        "x_embedder.proj.bias": random(width),
        "t_embedder.mlp.0.weight": random(width, 256),
        "t_embedder.mlp.0.bias": random(width),
        "t_embedder.mlp.2.weight": random(width, width),
        "t_embedder.mlp.2.bias": random(width),
        "y_embedder.embedding_table.weight": random(CLASSES + 1, width),
        "pos_embed": random(1, GRID * GRID, width),
        "final_layer.adaLN_modulation.1.weight": random(2 * width, width),
        "final_layer.adaLN_modulation.1.bias": random(2 * width),
        "final_layer.linear.weight": random(PATCH * PATCH * 8, width),
        "final_layer.linear.bias": random(PATCH * PATCH * 8),
    }
    for i in range(LAYERS):
        for name, out, inp in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
            ("adaLN_modulation.1", 6 * width, width),
        ):
            state[f"blocks.{i}.{name}.weight"] = random(out, inp)
            state[f"blocks.{i}.{name}.bias"] = random(out)
    return state


def native_forward(p: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """DiT as its repository defines it (arXiv 2212.09748), in the dtype of its weights. (B, 4, h, w) -> (B, 8, ...)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), eps=1e-6)

    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=x.dtype) / 128)
    angles = t[:, None].to(x.dtype) * frequencies
    condition = linear(
        "t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1)))
    )
    condition = F.silu(condition + p["y_embedder.embedding_table.weight"][y])

    x = F.conv2d(x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + p["pos_embed"]
    batch, tokens = x.shape[:2]
    for i in range(LAYERS):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = linear(f"blocks.{i}.adaLN_modulation.1", condition)[
            :, None
        ].chunk(6, dim=2)
        qkv = linear(f"blocks.{i}.attn.qkv", norm(x) * (1 + scale_a) + shift_a)
        q, k, v = qkv.reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(WIDTH // HEADS)
        core = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, WIDTH)
        x = x + gate_a * linear(f"blocks.{i}.attn.proj", core)
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(x) * (1 + scale_m) + shift_m), approximate="tanh")
        x = x + gate_m * linear(f"blocks.{i}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", condition)[:, None].chunk(2, dim=2)
    x = linear("final_layer.linear", norm(x) * (1 + scale) + shift)
    x = x.reshape(batch, GRID, GRID, PATCH, PATCH, 8).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, 8, GRID * PATCH, GRID * PATCH)


@torch.no_grad()
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"ema": s, "model": native_state(seed=9)}], ids=["plain", "ema"]
)
def test_outputs_are_those_of_the_native_formula(tmp_path: Path, wrap: Any) -> None:
    state = native_state()
    torch.save(wrap(state), tmp_path / "DiT.pt")
    model = load_original_dit(tmp_path / "DiT.pt", heads=HEADS)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([999, 500, 1]), torch.tensor([0, 7, CLASSES])
    expected = native_forward({name: value.double() for name, value in state.items()}, x.double(), t, y)
    ours = model(x, t, y).sample.double()
    assert float((ours - expected).norm() / expected.norm()) < 5e-5  # float32 angles of t = 999


def test_bad_checkpoints_get_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "garbage.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save({"model": print}, tmp_path / "code.pt")
    partial = native_state()
    del partial["blocks.1.attn.proj.bias"]
    torch.save(partial, tmp_path / "partial.pt")
    for name, words in {
        "missing.pt": "no checkpoint at",
        "garbage.pt": "not a readable checkpoint",
        "empty.pt": "not a readable checkpoint",
        "other.pt": "no x_embedder.proj.weight",
        "code.pt": "not a readable checkpoint",
        "partial.pt": "missing",
    }.items():
        with pytest.raises(LoadError, match=words) as error:
            load_original_dit(tmp_path / name, heads=HEADS)
        assert "\n" not in str(error.value)
    torch.save(native_state(), tmp_path / "narrow.pt")
    with pytest.raises(LoadError, match="width 48 is none of the published DiTs"):
        load_original_dit(tmp_path / "narrow.pt")
