"""A transformer of smaller patches that starts from a trained one of larger patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DiTTransformer2DModel

from ditfastattn.demo.model import build_transformer


@torch.no_grad()
def refine(trained: DiTTransformer2DModel, blocks: Sequence[int], patch: int) -> DiTTransformer2DModel:
    """A new DiT of the given patch size with copies of some of the trained blocks, in the given order.

    It sees an image as the trained one sees it enlarged k times (each latent value as k x k equal ones), where k is
    the quotient of the two patch sizes: the projection into a token is summed over the k x k values, the projection
    out of it averaged over them. So nothing begins at random, but the positions are k times as far apart as the
    blocks are used to, and must be learned again.

    Raises:
        ValueError: the trained patch is no multiple of the new one, or a block is not there.
    """
    config = trained.config
    k, rest = divmod(config.patch_size, patch)
    if rest:
        raise ValueError(f"patch {patch} does not divide the trained model's patch {config.patch_size}")
    if not blocks or not all(0 <= block < config.num_layers for block in blocks):
        raise ValueError(f"blocks {list(blocks)}: the trained model has blocks 0 to {config.num_layers - 1}")
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    model = build_transformer(len(blocks), heads, head_dim, config.sample_size, patch)
    for new, old in zip(model.transformer_blocks, blocks, strict=True):
        new.load_state_dict(trained.transformer_blocks[old].state_dict())
    model.proj_out_1.load_state_dict(trained.proj_out_1.state_dict())

    into, old_into = model.pos_embed.proj, trained.pos_embed.proj  # weights (C, 4, p, p)
    into.weight.copy_(old_into.weight.unflatten(3, (patch, k)).unflatten(2, (patch, k)).sum((3, 5)))
    into.bias.copy_(old_into.bias)
    for name in ("weight", "bias"):  # (p * p * 8, C) and (p * p * 8,)
        values = getattr(trained.proj_out_2, name).unflatten(0, (patch, k, patch, k, config.out_channels))
        getattr(model.proj_out_2, name).copy_(values.mean((1, 3)).flatten(0, 2))
    return model
