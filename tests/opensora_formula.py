"""STDiT2 written out token by token in float64, from the published description, to test the real one against."""

import cmath
import math
from typing import Any

import torch
from torch import Tensor


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def number(value: float, weights: dict[str, Tensor], name: str) -> Tensor:
    """(width,): DiT's timestep embedding of a number."""
    angles = [float(value) * 10000 ** (-i / 128) for i in range(128)]
    waves = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
    return linear(silu(linear(waves, weights, f"{name}.mlp.0")), weights, f"{name}.mlp.2")


def place(row: float, column: float, width: int) -> Tensor:
    """(width,): the column's sines and cosines, then the row's."""
    parts = []
    for position in (column, row):
        angles = [position * 10000 ** (-i / (width // 4)) for i in range(width // 4)]
        parts += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(parts, dtype=torch.float64)


def turned(x: Tensor, frame: int) -> Tensor:
    """(H, D): neighbouring channels as complex numbers, turned by frame * 10000^(-2i/D)."""
    out, depth = x.clone(), x.shape[-1]
    for head in range(x.shape[0]):
        for i in range(depth // 2):
            z = complex(x[head, 2 * i], x[head, 2 * i + 1]) * cmath.exp(1j * frame * 10000 ** (-2 * i / depth))
            out[head, 2 * i], out[head, 2 * i + 1] = z.real, z.imag
    return out


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, H, D) over (M, H, D)."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v).flatten(1)


def self_attention(x: Tensor, w: dict[str, Tensor], name: str, heads: int, rotated: bool, norm_first: bool) -> Tensor:
    """(N, C); where ``rotated`` the N tokens are frames."""
    q, k, v = (part.reshape(len(x), heads, -1) for part in linear(x, w, f"{name}.qkv").chunk(3, dim=-1))

    def normed(t: Tensor, which: str) -> Tensor:
        return t / (t.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.{which}.weight"]

    def rope(t: Tensor) -> Tensor:
        return torch.stack([turned(row, frame) for frame, row in enumerate(t)]) if rotated else t

    if norm_first:
        q, k = rope(normed(q, "q_norm")), rope(normed(k, "k_norm"))
    else:
        q, k = normed(rope(q), "q_norm"), normed(rope(k), "k_norm")
    return linear(softmax_attention(q, k, v), w, f"{name}.proj")


def block(x: Tensor, text: Tensor, six: Tensor, three: Tensor, w: dict[str, Tensor], heads: int, late: bool) -> Tensor:
    """x (T, S, C), of one video; text (words, C), those that count."""
    table, temporal = w["scale_shift_table"] + six, w["scale_shift_table_temporal"] + three
    for_space = layer_norm(x) * (1 + table[1]) + table[0]
    x = x + table[2] * torch.stack([self_attention(frame, w, "attn", heads, False, late) for frame in for_space])
    for_time = layer_norm(x) * (1 + temporal[1]) + temporal[0]
    tracks = [self_attention(for_time[:, s], w, "attn_temp", heads, True, late) for s in range(x.shape[1])]
    x = x + temporal[2] * torch.stack(tracks, dim=1)
    tokens = x.flatten(0, 1)
    q = linear(tokens, w, "cross_attn.q_linear").reshape(len(tokens), heads, -1)
    k, v = (t.reshape(len(text), heads, -1) for t in linear(text, w, "cross_attn.kv_linear").chunk(2, dim=-1))
    x = x + linear(softmax_attention(q, k, v), w, "cross_attn.proj").reshape(x.shape)
    for_mlp = layer_norm(x) * (1 + table[4]) + table[3]
    return x + table[5] * linear(gelu(linear(for_mlp, w, "mlp.fc1")), w, "mlp.fc2")


def stdit2(model: Any, latents: Tensor, timestep: float, words: Tensor, told: dict[str, float]) -> Tensor:
    """The output (C_out, T, h, w) for one video: latents (C, T, h, w), words (those that count, caption_channels)."""
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    config, width = model.config, model.config.hidden_size
    channels, frames, h, wd = latents.shape
    rows, columns = math.ceil(h / 2), math.ceil(wd / 2)
    padded = torch.zeros(channels, frames, 2 * rows, 2 * columns, dtype=torch.float64)
    padded[..., :h, :wd] = latents
    scale = math.sqrt(told["height"] * told["width"]) / config.input_sq_size
    side = round(math.sqrt(rows * columns))
    x = torch.zeros(frames, rows * columns, width, dtype=torch.float64)
    for t in range(frames):
        for r in range(rows):
            for c in range(columns):
                patch = padded[:, t, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten()
                token = w["x_embedder.proj.weight"].flatten(1) @ patch + w["x_embedder.proj.bias"]
                x[t, r * columns + c] = token + place(r / scale * side / rows, c / scale * side / columns, width)

    time = number(timestep, w, "t_embedder")
    pixels = [number(told[name], w, "csize_embedder") for name in ("height", "width")]
    size = torch.cat([*pixels, number(told["ar"], w, "ar_embedder")])
    length = number(told["num_frames"], w, "fl_embedder") + number(told["fps"], w, "fps_embedder")
    six = linear(silu(time + size), w, "t_block.1").reshape(6, width)
    three = linear(silu(time + length), w, "t_block_temp.1").reshape(3, width)
    text = linear(gelu(linear(words.double(), w, "y_embedder.y_proj.fc1")), w, "y_embedder.y_proj.fc2")
    for i in range(config.depth):
        own = {name.removeprefix(f"blocks.{i}."): t for name, t in w.items() if name.startswith(f"blocks.{i}.")}
        x = block(x, text, six, three, own, config.num_heads, not config.qk_norm_legacy)

    shift, scale_out = w["final_layer.scale_shift_table"] + time
    patches = linear(layer_norm(x) * (1 + scale_out) + shift, w, "final_layer.linear")
    out = torch.zeros(model.out_channels, frames, 2 * rows, 2 * columns, dtype=torch.float64)
    for t in range(frames):
        for r in range(rows):
            for c in range(columns):
                values = patches[t, r * columns + c].reshape(2, 2, model.out_channels)
                out[:, t, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = values.permute(2, 0, 1)
    return out[..., :h, :wd]
