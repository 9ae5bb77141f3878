"""A small video transformer whose blocks hold both sites in one module, as STDiT2 does, and its adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ditfastattn.layout import Layout
from ditfastattn.models.base import BlockAdapter, Call, ModelAdapter
from plans import ModelSpec, TemporalShape

WIDTH, HEADS, FRAMES, CHANNELS = 16, 2, 3, 4


class Attention(nn.Module):
    """Softmax attention over the second dimension: (rows, N, C) -> (rows, N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, (rows, N, H, D) each."""
        return [part.unflatten(2, (HEADS, -1)) for part in self.qkv(x).chunk(3, dim=2)]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.heads(x))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Spatial attention, temporal attention, MLP; (B, T N, C), frame after frame."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial, self.temporal, self.mlp = Attention(), Attention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, shift: Tensor) -> Tensor:
        x = hidden + shift  # (B, 1, C)
        spatial = self.spatial(x.unflatten(1, (FRAMES, -1)).flatten(0, 1))  # (B T, N, C)
        hidden = hidden + spatial.unflatten(0, (-1, FRAMES)).flatten(1, 2)
        frames = hidden.unflatten(1, (FRAMES, -1)).transpose(1, 2)  # (B, N, T, C)
        temporal = self.temporal(frames.flatten(0, 1)).view(frames.shape)
        hidden = hidden + temporal.transpose(1, 2).flatten(1, 2)
        return hidden + self.mlp(torch.tanh(hidden) * shift)


class TwoSites(nn.Module):
    """(B, 4, T, h, w) -> the same; a guided batch is [cond, uncond]."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, latents: Tensor, timestep: Tensor, prompts: Tensor) -> Tensor:
        hidden = self.embed(latents.flatten(2).transpose(1, 2))  # (B, T N, C)
        shift = self.time(timestep.view(-1, 1).to(hidden) / 1000)[:, None] + prompts[:, None]
        for block in self.blocks:
            hidden = block(hidden, shift)
        return self.head(hidden).transpose(1, 2).reshape(latents.shape)


@dataclass
class State:
    hidden: Tensor  # (rows, N, C), rows of the site
    block_hidden: Tensor  # (B, T N, C)
    shift: Tensor  # (B, 1, C)


class _Part(BlockAdapter[State]):
    def __init__(self, module: Block) -> None:
        self.module: Any = module

    @property
    def attention(self) -> Attention:
        return getattr(self.module, "spatial" if self.site == "attn" else "temporal")

    def qkv(self, state: State, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.attention.heads(state.hidden[rows])
        return q, k, v

    def project(self, core: Tensor, out: Tensor | None = None) -> Tensor:
        return self.attention.out(core.flatten(2))


class SpatialPart(_Part):
    """The block up to the end of its spatial attention."""

    def begin(self, hidden: Tensor, shift: Tensor, *, skip_attention: bool) -> State:  # type: ignore[override]
        rows = (hidden + shift).unflatten(1, (FRAMES, -1)).flatten(0, 1)
        return State(rows, hidden, shift)

    def finish(self, state: State, attention_output: Tensor) -> Tensor:
        return state.block_hidden + attention_output.unflatten(0, (-1, FRAMES)).flatten(1, 2)


class TemporalPart(_Part):
    """Temporal attention and what follows it."""

    site = "temporal"

    def begin(self, hidden: Tensor, shift: Tensor, *, skip_attention: bool) -> State:  # type: ignore[override]
        rows = hidden.unflatten(1, (FRAMES, -1)).transpose(1, 2).flatten(0, 1)
        return State(rows, hidden, shift)

    def finish(self, state: State, attention_output: Tensor) -> Tensor:
        places = state.block_hidden.shape[1] // FRAMES
        hidden = state.block_hidden + attention_output.unflatten(0, (-1, places)).transpose(1, 2).flatten(1, 2)
        return hidden + self.module.mlp(torch.tanh(hidden) * state.shift)


class TwoSitesAdapter(ModelAdapter):
    guided_layout = Layout.COND_FIRST
    conditioned_on = "prompts"

    def __init__(self, model: TwoSites) -> None:
        super().__init__(model)
        self._blocks = [part(block) for block in model.blocks for part in (SpatialPart, TemporalPart)]

    @property
    def blocks(self) -> list[BlockAdapter[Any]]:
        return list(self._blocks)

    def spec(self) -> ModelSpec:
        layers = len(self.model.blocks)
        return ModelSpec(
            class_name="TwoSites",
            layers=layers,
            heads=HEADS,
            head_dim=WIDTH // HEADS,
            tokens=6,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            temporal=TemporalShape(layers=layers, frames=FRAMES),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def obstacles(self) -> list[str]:
        return []

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        return Call(*args)

    def is_guided(self, call: Call) -> bool:
        return call.latents.shape[0] % 2 == 0

    def mixes_branches(self, call: Call) -> bool:
        return False


def small_two_sites(layers: int = 2) -> TwoSites:
    generator = torch.Generator().manual_seed(0)
    model = TwoSites(layers)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return model.eval()


def pipeline_of(model: nn.Module, scheduler: Any) -> Any:
    """What `small_models.full_plan` needs of a pipeline."""
    return SimpleNamespace(transformer=model, scheduler=scheduler)
