"""STDiT2's block: spatial attention, temporal attention, cross-attention, feed-forward.

As in Open-Sora 1.1 (hpcaitech/Open-Sora, opensora/models/stdit/stdit2.py). Both self-attentions are cut out cleanly:
what feeds one, its queries, keys and values, its core, its projection and what is done with its output are separate.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditfastattn.opensora.embeddings import Mlp, rotate

EPS = 1e-6  # of every norm
SPATIAL = slice(0, 3)  # shift, scale and gate of a block's nine vectors
FEED_FORWARD = slice(3, 6)
TEMPORAL = slice(6, 9)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for (rows, N, H, D); ``mask`` (rows, 1, 1, keys), True where a key is seen."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then adaLN's scale and shift: x (B, N, C), the others (B, 1, C)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class RMSNorm(nn.Module):
    """Root mean square norm in float32 (arXiv 1910.07467), with a weight per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


class SelfAttention(nn.Module):
    """Self-attention with norms of queries and keys, and rotary embedding where a rotation is given."""

    def __init__(self, width: int, heads: int, norm: bool, rotate_first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.rotate_first = rotate_first
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def queries_keys_values(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (rows, N, C) -> (rows, N, H, D) each; ``rotation`` (2, N, D / 2)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if rotation is not None and self.rotate_first:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None and not self.rotate_first:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v

    def project(self, core: Tensor) -> Tensor:
        """(rows, N, H, D) -> (rows, N, C)."""
        return self.proj(core.flatten(2))

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        return self.project(attend(*self.queries_keys_values(x, rotation)))


class CrossAttention(nn.Module):
    """Attention of the tokens over the words of their prompt."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, C), text (B, L, C), mask (B, L) True where a word counts -> (B, N, C)."""
        q = self.q_linear(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv_linear(text).unflatten(-1, (2, self.heads, -1)).unbind(2)
        seen = None if mask is None else mask[:, None, None]
        return self.proj(attend(q, k, v, seen).flatten(2))


class STDiT2Block(nn.Module):
    """One block. Tokens stand frame by frame, (B, T * S, C): T frames of S tokens.

    Spatial attention takes them as (B * T, S, C), temporal attention as (B * S, T, C). In both the rows of the first
    half of the batch come first, so that the branches of a guided batch stay contiguous halves.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, qk_norm: bool, rotate_first: bool) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads, qk_norm, rotate_first)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / math.sqrt(width))
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio), width)
        self.attn_temp = SelfAttention(width, heads, qk_norm, rotate_first)
        self.scale_shift_table_temporal = nn.Parameter(torch.randn(3, width) / math.sqrt(width))

    def modulation(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """(B, 6, C) and (B, 3, C), the same for all blocks, -> this block's (B, 9, C).

        Shift, scale and gate of spatial attention, of the feed-forward, of temporal attention.
        """
        return torch.cat([self.scale_shift_table + spatial, self.scale_shift_table_temporal + temporal], dim=1)

    def spatial_input(self, hidden: Tensor, modulation: Tensor, frames: int) -> Tensor:
        """What spatial attention reads: (B, T * S, C) -> (B * T, S, C)."""
        shift, scale, _ = _three(modulation, SPATIAL)
        return modulate(hidden, shift, scale).unflatten(1, (frames, -1)).flatten(0, 1)

    def add_spatial(self, hidden: Tensor, output: Tensor, modulation: Tensor) -> Tensor:
        """Adds spatial attention's output (B * T, S, C) to (B, T * S, C), through its gate."""
        gate = _three(modulation, SPATIAL)[2]
        return hidden + gate * output.reshape(hidden.shape)

    def temporal_input(self, hidden: Tensor, modulation: Tensor, frames: int) -> Tensor:
        """What temporal attention reads: (B, T * S, C) -> (B * S, T, C)."""
        shift, scale, _ = _three(modulation, TEMPORAL)
        return modulate(hidden, shift, scale).unflatten(1, (frames, -1)).transpose(1, 2).flatten(0, 1)

    def add_temporal(self, hidden: Tensor, output: Tensor, modulation: Tensor) -> Tensor:
        """Adds temporal attention's output (B * S, T, C) to (B, T * S, C), through its gate."""
        gate = _three(modulation, TEMPORAL)[2]
        by_frame = output.unflatten(0, (hidden.shape[0], -1)).transpose(1, 2)  # (B, T, S, C)
        return hidden + gate * by_frame.reshape(hidden.shape)

    def add_text(self, hidden: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """Adds cross-attention, which has neither norm nor gate."""
        return hidden + self.cross_attn(hidden, text, mask)

    def feed_forward_input(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """What the MLP reads: (B, T * S, C)."""
        shift, scale, _ = _three(modulation, FEED_FORWARD)
        return modulate(hidden, shift, scale)

    def add_fed(self, hidden: Tensor, fed: Tensor, modulation: Tensor) -> Tensor:
        """Adds the MLP's output (B, T * S, C), through its gate."""
        return hidden + _three(modulation, FEED_FORWARD)[2] * fed

    def add_feed_forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        return self.add_fed(hidden, self.mlp(self.feed_forward_input(hidden, modulation)), modulation)

    def forward(
        self, hidden: Tensor, text: Tensor, mask: Tensor | None, spatial: Tensor, temporal: Tensor, rotation: Tensor
    ) -> Tensor:
        """The whole block.

        Args:
            hidden: (B, T * S, C).
            text: (B, L, C), the prompts; ``mask`` (B, L) True where a word counts, None for all.
            spatial, temporal: as in :meth:`modulation`.
            rotation: (2, T, D / 2), of the frames.
        """
        frames = rotation.shape[1]
        modulation = self.modulation(spatial, temporal)
        hidden = self.add_spatial(hidden, self.attn(self.spatial_input(hidden, modulation, frames)), modulation)
        output = self.attn_temp(self.temporal_input(hidden, modulation, frames), rotation)
        hidden = self.add_temporal(hidden, output, modulation)
        return self.add_feed_forward(self.add_text(hidden, text, mask), modulation)


class FinalLayer(nn.Module):
    """Tokens back to patches, with a modulation from the timestep alone (PixArt-alpha's last layer)."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out_features)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / math.sqrt(width))

    def modulation(self, time: Tensor) -> Tensor:
        """(B, C) -> (B, 2, C): shift and scale."""
        return self.scale_shift_table + time[:, None]

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """(B, N, C) and (B, 2, C) -> (B, N, out_features)."""
        shift, scale = modulation.split(1, dim=1)
        return self.linear(modulate(hidden, shift, scale))


def _three(modulation: Tensor, part: slice) -> tuple[Tensor, ...]:
    """Shift, scale and gate, (B, 1, C) each."""
    return modulation[:, part].split(1, dim=1)
