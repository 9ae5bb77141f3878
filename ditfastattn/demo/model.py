"""The demo's transformer, built and initialised as DiT's."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

NULL_CLASS = 1000
"""The label of "no class": DiTPipeline has this number built in, so the embedding keeps ImageNet's 1,000
rows."""


def build_transformer(
    layers: int = 13, heads: int = 3, head_dim: int = 64, sample_size: int = 32, patch: int = 2
) -> DiTTransformer2DModel:
    """A DiT of `layers` blocks and width heads * head_dim over (4, sample_size, sample_size) latents, a token for
    each patch x patch of them."""
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=sample_size,
        patch_size=patch,
        num_embeds_ada_norm=NULL_CLASS,
    )
    initialise(model)
    # Each block would drop labels on its own in training mode; the trainer drops a sample's label once for
    # all of them.
    return model.eval()


@torch.no_grad()
def initialise(model: DiTTransformer2DModel) -> None:
    """DiT's initialisation: Xavier for linear layers, N(0, 0.02) for the embeddings, and zero for what
    modulates and for the last layer, so that each block starts as the identity and the output as zero.
    diffusers leaves this to its checkpoints."""
    xavier(model, model.pos_embed.proj)
    for block in model.transformer_blocks:
        embedding = block.norm1.emb
        nn.init.normal_(embedding.class_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(embedding.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(embedding.timestep_embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
    for last in (model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


@torch.no_grad()
def xavier(model: nn.Module, patches: Any) -> None:
    """Xavier for linear layers and for the convolution that makes tokens of patches, zero for their biases."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for module in (*linear, patches):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
