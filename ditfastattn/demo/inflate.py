"""A video transformer that starts from a trained image transformer: Open-Sora's STDiT2 from a DiT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from ditfastattn.demo.clip_pipeline import build_stdit2
from ditfastattn.demo.diffusion import STEPS
from ditfastattn.demo.model import NULL_CLASS
from ditfastattn.opensora import STDiT2
from ditfastattn.opensora.embeddings import sinusoids

RIDGE = 1e-2  # of a least-squares fit, in mean squares of what is fitted to
SMALLEST = 0.2  # of a block's share in a change over time, where 1 is usual: what divides by it stays bounded


@torch.no_grad()
def inflate(trained: DiTTransformer2DModel, blocks: Sequence[int]) -> STDiT2:
    """A new STDiT2 that predicts the noise of each frame about as these blocks of the DiT do without a class.

    Patches, spatial attention, feed-forward and the last layer are the trained ones, and the positions are equal
    already. What temporal and cross-attention add is zero at first; temporal attention has the queries, keys and values
    of spatial attention. Queries and keys have no norms, as in DiT.

    One thing cannot be copied. DiT computes the modulations of each block from the timestep on their own; STDiT2 has
    one layer for all blocks, and a constant for each. But a factor for each channel of a block may hide in the weights
    that the modulated values meet, so the changes over time are fitted by one curve a channel, times these factors.

    Raises:
        ValueError: a block is not there.
    """
    config = trained.config
    if not blocks or not all(0 <= block < config.num_layers for block in blocks):
        raise ValueError(f"blocks {list(blocks)}: the trained model has blocks 0 to {config.num_layers - 1}")
    olds: list[Any] = [trained.transformer_blocks[block] for block in blocks]
    width = config.num_attention_heads * config.attention_head_dim
    model: Any = build_stdit2(width, len(blocks), config.num_attention_heads, mlp_ratio=4)
    model.x_embedder.proj.weight.copy_(trained.pos_embed.proj.weight[:, :, None])
    model.x_embedder.proj.bias.copy_(trained.pos_embed.proj.bias)
    model.final_layer.linear.load_state_dict(trained.proj_out_2.state_dict())
    for new, old in zip(model.blocks, olds, strict=True):
        parts = (old.attn1.to_q, old.attn1.to_k, old.attn1.to_v)
        new.attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        new.attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        new.attn.proj.load_state_dict(old.attn1.to_out[0].state_dict())
        new.mlp.fc1.load_state_dict(old.ff.net[0].proj.state_dict())
        new.mlp.fc2.load_state_dict(old.ff.net[2].state_dict())

    _say_nothing_of_sizes(model)
    _copy_time(model, trained)
    spatial = _copy_modulations(model, torch.stack([_modulations(old) for old in olds]))
    features = F.silu(model.time(torch.arange(STEPS)))
    _fit(model.t_block[1], features, spatial.flatten(1))
    temporal = model.t_block_temp[1]
    temporal.weight.zero_()  # its gate stays open: the projection behind it is zero
    temporal.bias.zero_()
    temporal.weight[: 2 * width] = model.t_block[1].weight[: 2 * width]
    temporal.bias[: 2 * width] = model.t_block[1].bias[: 2 * width]
    for block in model.blocks:
        block.attn_temp.qkv.load_state_dict(block.attn.qkv.state_dict())
        block.scale_shift_table_temporal[:2] = block.scale_shift_table[:2]
        block.scale_shift_table_temporal[2] = 1
    return model


def _say_nothing_of_sizes(model: Any) -> None:
    for part in (model.csize_embedder, model.ar_embedder, model.fl_embedder, model.fps_embedder):
        nn.init.zeros_(part.mlp[2].weight)
        nn.init.zeros_(part.mlp[2].bias)


def _embedded(block: Any) -> Tensor:
    """What a DiT block computes its modulations from at each timestep without a class, (STEPS, C)."""
    times = torch.arange(STEPS)
    return F.silu(block.norm1.emb(times, torch.full_like(times, NULL_CLASS), hidden_dtype=torch.float32))


def _modulations(block: Any) -> Tensor:
    """A DiT block's (STEPS, 6, C): shift, scale and gate of attention, then of the feed-forward."""
    return block.norm1.linear(_embedded(block)).unflatten(1, (6, -1))


def _copy_modulations(model: Any, wanted: Tensor) -> Tensor:
    """Sets the blocks' tables, puts factors into their weights, and returns what is common to all, (STEPS, 6, C).

    Args:
        wanted: (blocks, STEPS, 6, C).
    """
    common = torch.empty_like(wanted[0])
    for first in (0, 3):  # attention, feed-forward
        inputs = wanted[:, :, first : first + 2].clone()
        inputs[:, :, 1] += 1  # what multiplies is 1 + scale
        common[:, first : first + 2], tables, factors = share(inputs)
        tables[:, 1] -= 1
        common[:, first + 2 : first + 3], gates, gate_factors = share(wanted[:, :, first + 2 : first + 3])
        for number, block in enumerate(model.blocks):
            into, out = (block.attn.qkv, block.attn.proj) if first == 0 else (block.mlp.fc1, block.mlp.fc2)
            block.scale_shift_table[first : first + 2] = tables[number]
            block.scale_shift_table[first + 2] = gates[number, 0]
            into.weight *= factors[number]
            out.weight *= gate_factors[number, :, None]
            out.bias *= gate_factors[number]
    return common


def share(curves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Curves of several blocks as one: curves[b] ~ factors[b] * (common + tables[b]), for each channel the best.

    Args:
        curves: (blocks, times, kinds, C); all kinds of a channel have one factor.

    Returns:
        common (times, kinds, C) of mean zero over time, tables (blocks, kinds, C), factors (blocks, C).
    """
    blocks, times = curves.shape[:2]
    means = curves.mean(1)
    changes = (curves - means[:, None]).double().permute(3, 0, 1, 2).flatten(2)  # (C, blocks, times * kinds)
    left = torch.linalg.eigh(changes @ changes.mT).eigenvectors[..., -1]  # the first left singular vectors
    factors = left * blocks**0.5  # (C, blocks), of mean square 1
    common = (left[:, None] @ changes)[:, 0] / blocks**0.5
    factors = factors.sign() * factors.abs().clamp_min(SMALLEST)
    factors = torch.where(factors == 0, SMALLEST, factors).T.to(curves.dtype)
    common = common.T.unflatten(0, (times, -1)).to(curves.dtype)
    return common, means / factors[:, None], factors


def _copy_time(model: Any, trained: Any) -> None:
    """The embedding of time, fitted to what DiT's last layer needs.

    There STDiT2 adds the embedding e itself to both a constant shift and a constant scale, where DiT has two curves.
    With last weights W and normed values of unit covariance, the mean square error of the output is
    |W (shift - e)|^2 + sum_c |W_c|^2 (scale - e)_c^2, which is least at the e below.
    """
    first = trained.transformer_blocks[0]
    shift, scale = trained.proj_out_1(_embedded(first)).double().chunk(2, dim=1)  # (STEPS, C) each
    gram = trained.proj_out_2.weight.double().mT @ trained.proj_out_2.weight.double()
    own = gram.diagonal().diag()
    changes = [curve - curve.mean(0) for curve in (shift, scale)]
    inverse = torch.linalg.pinv(gram + own, hermitian=True)  # an untrained last layer is zero
    wanted = (changes[0] @ gram + changes[1] @ own) @ inverse
    model.final_layer.scale_shift_table.copy_(torch.stack([shift.mean(0), scale.mean(0)]))

    into, _, out = model.t_embedder.mlp
    into.load_state_dict(first.norm1.emb.timestep_embedder.linear_1.state_dict())
    _fit(out, F.silu(into(sinusoids(torch.arange(STEPS)))), wanted)


def _fit(layer: nn.Linear, given: Tensor, wanted: Tensor) -> None:
    """Least squares: the layer's output for ``given`` (times, in) is about ``wanted`` (times, out)."""
    x, y = given.double(), wanted.double()
    centred = x - x.mean(0)
    gram = centred.mT @ centred
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-9) * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram + ridge, centred.mT @ (y - y.mean(0))).mT
    layer.weight.copy_(weight)
    layer.bias.copy_(y.mean(0) - x.mean(0) @ weight.mT)
