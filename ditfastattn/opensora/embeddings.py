"""What STDiT2 adds to its tokens and computes its modulations from: patches, positions, times, sizes, captions.

Shapes, names and formulas as in hpcaitech/Open-Sora (opensora/models/layers/blocks.py), whose checkpoints this loads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FREQUENCIES = 256  # of a number: 128 cosines, then 128 sines


def sinusoids(values: Tensor) -> Tensor:
    """Numbers (N,) as (N, 256) float32: cos and sin of value * 10000^(-i/128) (DiT, arXiv 2212.09748)."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_positions(rows: int, columns: int, scale: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Sines and cosines of each token's place in a frame, (1, rows * columns, width), in ``dtype``.

    Places are stretched to a square of the same number of tokens, and divided by ``scale``, so that frames of every
    size and shape cover the range that the model was first trained on (PixArt-alpha, arXiv 2310.00426, 512 x 512). The
    first half of the channels tells the column, the second the row.

    Args:
        scale: () sqrt(height * width) in pixels over the side of the square of training.
        dtype: of the parameters. The frequencies are rounded to it, too, as they were in training.
    """
    side = round(math.sqrt(rows * columns))
    quarter = width // 4
    exponents = torch.arange(quarter, dtype=torch.float32, device=scale.device) / quarter
    frequencies = (10000**-exponents).to(dtype).float()

    def encode(count: int) -> Tensor:  # (count, width / 2)
        places = torch.arange(count, dtype=torch.float32, device=scale.device) / scale.float() * (side / count)
        angles = places[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    column = encode(columns).expand(rows, columns, -1)
    row = encode(rows)[:, None].expand(rows, columns, -1)
    return torch.cat([column, row], dim=-1).reshape(1, rows * columns, width).to(dtype)


class PatchEmbed3D(nn.Module):
    """Patches of a video as tokens; what is no multiple of the patch is padded with zeros at its end."""

    def __init__(self, patch: tuple[int, int, int], in_channels: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(frames, rows, columns) of the tokens of latents of that size."""
        t, h, w = self.patch
        return -(-frames // t), -(-height // h), -(-width // w)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, T, h, w) -> (B, T' * S, width), frame by frame, row by row."""
        missing = [-size % patch for size, patch in zip(latents.shape[2:], self.patch, strict=True)]
        padded = F.pad(latents, (0, missing[2], 0, missing[1], 0, missing[0])) if any(missing) else latents
        # Contiguous: all blocks inherit this layout, and each norm would copy another one.
        return self.proj(padded).flatten(2).transpose(1, 2).contiguous()


class NumberEmbedder(nn.Module):
    """Timesteps, and the sizes that Open-Sora 1.1 tells its model, as vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        """(B, K) numbers, K of each row -> (B, K * width)."""
        dtype = next(self.parameters()).dtype
        embedded = self.mlp(sinusoids(values.flatten()).to(dtype))
        return embedded.reshape(values.shape[0], -1)


class Mlp(nn.Module):
    """Two linear layers with tanh-GELU between them, under timm's names."""

    def __init__(self, in_width: int, hidden: int, out_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden)
        self.fc2 = nn.Linear(hidden, out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Words of the text encoder at the model's width, and the caption that stands for none.

    That one is random numbers drawn once: the original registers it as a buffer, which no optimizer sees, so only
    ``y_proj`` learned to read it. Each checkpoint holds its own.
    """

    y_embedding: Tensor  # (words, in_width): what the unconditional branch reads

    def __init__(self, in_width: int, width: int, words: int) -> None:
        super().__init__()
        self.y_proj = Mlp(in_width, width, width)
        self.register_buffer("y_embedding", torch.randn(words, in_width) / math.sqrt(in_width))

    def forward(self, y: Tensor) -> Tensor:
        """(B, 1, words, in_width) -> (B, words, width)."""
        return self.y_proj(y.squeeze(1))


class RotaryFrequencies(nn.Module):
    """Angles of rotary embedding over the frames (arXiv 2104.09864); the checkpoint holds the frequencies."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.freqs = nn.Parameter(10000**-exponents, requires_grad=False)

    def forward(self, frames: int) -> Tensor:
        """(2, frames, head_dim / 2) float32: cosines and sines. The angles are rounded to the parameters' dtype, as
        they were in training."""
        places = torch.arange(frames, device=self.freqs.device).to(self.freqs.dtype)
        angles = (places[:, None] * self.freqs).float()
        return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns neighbouring channels of x (rows, T, H, D) as pairs by the angles of ``rotation`` (2, T, D / 2)."""
    cos, sin = rotation[:, :, None]  # (T, 1, D / 2) each
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
