"""A DiT written by its user: adaLN-Zero blocks around an attention of its own, registered by that attention alone."""

from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

import ditfastattn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, x: Tensor) -> list[Tensor]:
        """q, k and v, (B, N, H, D) each."""
        return [part(x).unflatten(2, (self.heads, -1)) for part in (self.to_q, self.to_k, self.to_v)]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.split(x))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OwnDiT(nn.Module):
    """With the weights of a DiT of diffusers, whose embeddings and MLPs it takes over as they are."""

    order: list[int] | None = None

    def __init__(self, given: DiTTransformer2DModel) -> None:
        super().__init__()
        config: Any = given.config
        blocks: Any = given.transformer_blocks
        self.patch, self.channels = config.patch_size, given.out_channels
        self.enter, self.leave, self.head = given.pos_embed, given.proj_out_2, given.proj_out_1
        self.norm_out = given.norm_out
        self.embeddings = nn.ModuleList(block.norm1.emb for block in blocks)
        self.modulations = nn.ModuleList(block.norm1.linear for block in blocks)
        self.norms = nn.ModuleList(block.norm1.norm for block in blocks)
        self.mlp_norms = nn.ModuleList(block.norm3 for block in blocks)
        self.mlps = nn.ModuleList(block.ff for block in blocks)
        self.attentions = nn.ModuleList()
        for block in blocks:
            heads, theirs = config.num_attention_heads, block.attn1
            ours = Attention(heads * config.attention_head_dim, heads)
            for name in ("to_q", "to_k", "to_v"):
                getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
            ours.out.load_state_dict(theirs.to_out[0].state_dict())
            self.attentions.append(ours)

    def add(self, hidden: Tensor, gate: Tensor, attention: nn.Module, x: Tensor) -> Tensor:
        return hidden + gate * attention(x)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        height, width = (side // self.patch for side in x.shape[2:])
        hidden = self.enter(x)
        for i in self.order or range(len(self.attentions)):
            condition = nn.functional.silu(self.embeddings[i](time, label, hidden_dtype=hidden.dtype))
            chunks = self.modulations[i](condition)[:, None].chunk(6, dim=2)  # (B, 1, C) each
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = chunks
            hidden = self.add(hidden, gate, self.attentions[i], self.norms[i](hidden) * (1 + scale) + shift)
            fed = self.mlps[i](self.mlp_norms[i](hidden) * (1 + mlp_scale) + mlp_shift)
            hidden = hidden + mlp_gate * fed
        condition = self.embeddings[0](time, label, hidden_dtype=hidden.dtype)
        shift, scale = self.head(nn.functional.silu(condition))[:, None].chunk(2, dim=2)
        patches = self.leave(self.norm_out(hidden) * (1 + scale) + shift)
        patches = patches.unflatten(2, (self.patch, self.patch, self.channels)).unflatten(1, (height, width))
        return torch.einsum("nhwpqc->nchpwq", patches).flatten(4, 5).flatten(2, 3)


def own_dit(given: DiTTransformer2DModel, cls: type[OwnDiT] = OwnDiT) -> Any:
    """The same function as ``given``, which shares its embeddings and MLPs."""
    return cls(given).eval()


def registration(**changes: Any) -> dict[str, Any]:
    """What a user registers of it, changed."""
    return {
        "guided": "cond_first",
        "unconditional": lambda label: label == 1000,
        "attentions": lambda model: model.attentions,
        "qkv": Attention.split,
        "project": lambda attention, heads: attention.out(heads.flatten(2)),
        "call": lambda x, time, label: ditfastattn.Call(x, time, label),
        "shape": lambda model: {"tokens": 16, "heads": 2, "head_dim": 24, "in_channels": 4, "out_channels": 8},
    } | changes
