"""DiT as facebookresearch/DiT has it, written from the paper (arXiv 2212.09748, Sec. 3 and Fig. 3) with the names of
its checkpoints: what a user's own ``models.py`` would bring. Parts of timm (Attention, Mlp, PatchEmbed) included."""

import math
from typing import Any

import torch
from small_models import full_plan, random_plan, small_pipeline
from torch import Tensor, nn
from torch.nn import functional as F

from ditfastattn.original_dit import convert_original_dit
from plans import Plan

CLASSES, HEADS, WIDTH, PATCH = 10, 2, 48, 2


class Attention(nn.Module):
    """timm's: one product for q, k and v, whose output is [3, heads, head_dim]."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.num_heads, self.fused = HEADS, fused
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
        if self.fused:
            heads = F.scaled_dot_product_attention(q, k, v)
        else:
            heads = self.attn_drop((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)) @ v
        return self.proj_drop(self.proj(heads.transpose(1, 2).reshape(rows, tokens, width)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def bare_norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)


def modulation(vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, vectors * WIDTH))


class Block(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = bare_norm(), Attention(fused), bare_norm(), Mlp()
        self.adaLN_modulation = modulation(6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        parts = self.adaLN_modulation(c).chunk(6, dim=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (part.unsqueeze(1) for part in parts)
        x = x + gate_a * self.attn(self.norm1(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)


class PatchEmbedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(4, WIDTH, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class TimestepEmbedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], 1).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """The last row of the table stands for "no class"; in training labels are dropped at random."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.embedding_table = CLASSES, nn.Embedding(CLASSES + 1, WIDTH)

    def forward(self, labels: Tensor, train: bool) -> Tensor:
        if train:
            labels = torch.where(torch.rand(labels.shape) < 0.1, CLASSES, labels)
        return self.embedding_table(labels)


class FinalLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_final, self.linear = bare_norm(), nn.Linear(WIDTH, PATCH * PATCH * 8)
        self.adaLN_modulation = modulation(2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=2)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DiT(nn.Module):
    """16 tokens of 8 x 8 latents."""

    def __init__(self, layers: int = 4, fused: bool = True) -> None:
        super().__init__()
        self.x_embedder, self.t_embedder, self.y_embedder = PatchEmbedder(), TimestepEmbedder(), LabelEmbedder()
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, WIDTH), requires_grad=False)
        self.blocks = nn.ModuleList(Block(fused) for _ in range(layers))
        self.final_layer = FinalLayer()

    def unpatchify(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        x = x.view(x.shape[0], side, side, PATCH, PATCH, 8).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(x.shape[0], 8, side * PATCH, side * PATCH)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y, self.training)
        for block in self.blocks:
            x = block(x, c)
        return self.unpatchify(self.final_layer(x, c))

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        """Guides three of the four channels; only the first half of ``x`` is read."""
        half = x[: len(x) // 2]
        output = self.forward(torch.cat([half, half]), t, y)
        guided, rest = output[:, :3], output[:, 3:]
        cond, uncond = guided.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], 1)


def small_native_dit(layers: int = 4, seed: int = 0, cls: type = DiT, **options: Any) -> Any:
    """Random weights that all matter (adaLN-Zero would begin as the identity)."""
    generator = torch.Generator().manual_seed(seed)
    model = cls(layers, **options)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    return model.eval()


@torch.no_grad()
def sample_native(
    model: Any, timesteps: tuple[float, ...], labels: tuple[int, ...] = (1, 2), scale: float = 4.0
) -> Tensor:
    """As the repository's sample.py does it: forward_with_cfg, [cond, null] labels, its latents never made equal.

    The update is a plain one of our own. Returns every model output, (S, 2B, 8, 8, 8).
    """
    latents = torch.randn(len(labels), 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    y = torch.tensor([*labels, *[CLASSES] * len(labels)])
    outputs = []
    for i, timestep in enumerate(timesteps):
        t = torch.full((len(latents),), int(timestep))
        outputs.append(model.forward_with_cfg(latents, t, y, cfg_scale=scale))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(i + 1))  # another in each half
        latents = latents - 0.1 * outputs[-1][:, :4] + 0.05 * noise
    return torch.stack(outputs)


def diffusers_pipeline(native: Any) -> Any:
    pipe = small_pipeline()
    pipe.transformer = convert_original_dit(native.state_dict(), heads=2)
    return pipe


def a_plan(native: Any, seed: int | None = 0, **changes: Any) -> Plan:
    """A plan made for diffusers' class; ``seed=None`` for all FULL."""
    pipe = diffusers_pipeline(native)
    plan = full_plan(pipe, 8) if seed is None else random_plan(pipe, 8, seed=seed)
    return plan.model_copy(update=changes)


def attributes(model: nn.Module) -> list[dict[str, Any]]:
    return [dict(module.__dict__) for module in model.modules()]


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((ours - expected).norm() < tolerance * expected.norm())
