"""STDiT2 of Open-Sora 1.1: attention between the tokens of a frame and between frames, both in one block."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditfastattn.condition import Condition, FromPrompts, VideoSize
from ditfastattn.errors import ApplyError, StepError
from ditfastattn.layout import Layout
from ditfastattn.models.base import BlockAdapter, Call
from ditfastattn.models.obstacles import bypassed, common_obstacles
from ditfastattn.models.parts import WithParts, hidden_width
from ditfastattn.models.prompted import Prompted
from ditfastattn.opensora.blocks import SelfAttention, STDiT2Block
from ditfastattn.opensora.pipeline import GUIDED_CHANNELS, usual_fps
from ditfastattn.opensora.stdit2 import STDiT2
from plans import ModelSpec, SiteName, TemporalShape, TokenOrder

PUBLISHED_SIZE = (16, 30, 53)  # frames, height and width of latents: 16 frames of 240 x 426 pixels
SIZES = ("num_frames", "height", "width", "ar", "fps")


@dataclass
class STDiT2State:
    """A block in progress, at one of its sites."""

    hidden: Tensor  # (rows, N, C), rows of the site: its shape alone, so that nothing is copied where nothing is read
    block_hidden: Tensor  # (B, T * S, C)
    modulation: Tensor  # (B, 9, C)
    text: Tensor
    mask: Tensor | None
    rotation: Tensor  # (2, T, D / 2)

    @property
    def frames(self) -> int:
        return self.rotation.shape[1]

    def videos(self, rows: slice) -> slice:
        """The rows of the batch that some rows of the site belong to: a branch, or all."""
        each = self.hidden.shape[0] // self.block_hidden.shape[0]
        start, stop, _ = rows.indices(self.hidden.shape[0])
        return slice(start // each, stop // each)


class _Part(BlockAdapter[STDiT2State]):
    """One of the two sites of a block."""

    module: STDiT2Block

    def __init__(self, module: STDiT2Block) -> None:
        self.module = module

    @property
    def attention(self) -> SelfAttention:
        return self.module.attn if self.site == "attn" else self.module.attn_temp

    def begin(  # type: ignore[override]
        self,
        hidden: Tensor,
        text: Tensor,
        mask: Tensor | None,
        spatial: Tensor,
        temporal: Tensor,
        rotation: Tensor,
        *,
        skip_attention: bool,
    ) -> STDiT2State:
        batch, tokens, width = hidden.shape
        frames = rotation.shape[1]
        places = tokens // frames
        shape = (batch * frames, places) if self.site == "attn" else (batch * places, frames)
        rows = hidden.new_empty(1).expand(*shape, width)
        return STDiT2State(rows, hidden, self.module.modulation(spatial, temporal), text, mask, rotation)

    def project(self, core: Tensor, out: Tensor | None = None) -> Tensor:
        return self.attention.project(core)


class SpatialPart(_Part):
    """The block up to the end of its spatial attention: rows (B * T, S, C)."""

    def qkv(self, state: STDiT2State, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        videos = state.videos(rows)
        x = self.module.spatial_input(state.block_hidden[videos], state.modulation[videos], state.frames)
        return self.attention.queries_keys_values(x)

    def finish(self, state: STDiT2State, attention_output: Tensor) -> Tensor:
        return self.module.add_spatial(state.block_hidden, attention_output, state.modulation)


class TemporalPart(WithParts[STDiT2State], _Part):
    """Temporal attention, rows (B * S, T, C), and what follows it: cross-attention and the MLP, on (B, T * S, C)."""

    site = "temporal"

    @property
    def parts(self) -> tuple[SiteName, ...]:
        return ("cross", "mlp")

    @property
    def mlp_hidden(self) -> int | None:
        return hidden_width(self.module.mlp)

    def qkv(self, state: STDiT2State, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        videos = state.videos(rows)
        x = self.module.temporal_input(state.block_hidden[videos], state.modulation[videos], state.frames)
        return self.attention.queries_keys_values(x, state.rotation)

    def stream(self, state: STDiT2State) -> Tensor:
        return state.block_hidden

    def enter(
        self, site: SiteName, state: STDiT2State, hidden: Tensor, output: Tensor, rows: slice | None
    ) -> tuple[Tensor, Tensor | None]:
        hidden = self.module.add_temporal(hidden, output, state.modulation) if site == "cross" else hidden + output
        if rows is None:
            return hidden, None
        videos = state.videos(rows)
        x = hidden[videos]
        return hidden, x if site == "cross" else self.module.feed_forward_input(x, state.modulation[videos])

    def compute(self, site: SiteName, state: STDiT2State, x: Tensor, rows: slice) -> Tensor:
        if site == "mlp":
            fed: Tensor = self.module.mlp(x)
            return fed
        videos = state.videos(rows)
        mask = None if state.mask is None else state.mask[videos]
        attended: Tensor = self.module.cross_attn(x, state.text[videos], mask)
        return attended

    def leave(self, state: STDiT2State, hidden: Tensor, output: Tensor) -> Tensor:
        return self.module.add_fed(hidden, output, state.modulation)


class OpenSora(Prompted, FromPrompts):
    """The transformer of :class:`ditfastattn.opensora.OpenSoraPipeline`. A guided batch is [cond, uncond].

    Videos may be of any size, which only a call tells: a plan brings its own, and the first call of each run is
    compared with it.
    """

    guided_layout = Layout.COND_FIRST
    usual_guidance = 7.0  # DiTFastAttn, and Open-Sora's own
    usual_prompts = 4  # as the authors' script
    usual_video = VideoSize(16, 240, 426)
    takes_negative = False
    encoders = ("text_encoder", "tokenizer")

    def __init__(self, model: STDiT2) -> None:
        super().__init__(model)
        self._signature = inspect.signature(type(model).forward)
        self._blocks: list[_Part] = [part(block) for block in self.model.blocks for part in (SpatialPart, TemporalPart)]

    @property
    def blocks(self) -> list[BlockAdapter[Any]]:
        return list(self._blocks)

    def spec(self) -> ModelSpec:
        """At the published size."""
        return self.spec_of(*PUBLISHED_SIZE)

    def spec_of(self, frames: int, height: int, width: int) -> ModelSpec:
        """For latents of that size."""
        config = self.model.config
        grid = self.model.x_embedder.grid(frames, height, width)
        return ModelSpec(
            class_name=type(self.model).__name__,
            layers=config.depth,
            heads=config.num_heads,
            head_dim=config.hidden_size // config.num_heads,
            tokens=grid[1] * grid[2],
            in_channels=config.in_channels,
            out_channels=self.model.out_channels,
            temporal=TemporalShape(layers=config.depth, frames=grid[0]),
        )

    def spec_at(self, latent_shape: Sequence[int]) -> ModelSpec:
        return self.spec_of(*latent_shape[1:])

    def spec_for(self, planned: ModelSpec) -> ModelSpec:
        own = super().spec_for(planned)
        if planned.temporal is None or own.temporal is None:
            return own
        temporal = own.temporal.model_copy(update={"frames": planned.temporal.frames})
        return own.model_copy(update={"tokens": planned.tokens, "temporal": temporal})

    def grid(self, height: int, width: int) -> tuple[int, int]:
        _, rows, columns = self.model.x_embedder.grid(1, height, width)
        return rows, columns

    def obstacles(self) -> list[str]:
        found = common_obstacles(self.model)
        if self.model.training:
            found.append("it is set up for training; call eval()")
        if [block.module for block in self._blocks[::2]] != list(self.model.blocks):
            found.append("its blocks are not those that the plan was applied to; apply the plan anew")
        if self.model.patch_size[0] != 1:
            found.append("its patches span several frames, and a plan counts the frames of the latents")
        for place, block in zip(self.places, self._blocks, strict=True):
            name = "attn" if place.site == "attn" else "attn_temp"
            found += [f"{place}: {reason}" for reason in bypassed(name, block.attention)]
        return found

    def order_obstacles(self, order: TokenOrder) -> list[str]:
        if order == "raster":
            return []
        return [f"the plan puts the tokens in {order} order, but STDiT2's blocks hold those of all frames in one row"]

    def encoded(self, pipe: Any, prompts: list[str], negative_prompt: str, video: VideoSize | None) -> Condition:
        """As the pipeline has it: the model's null caption as unconditional branch, under the prompt's mask."""
        video = video or self.usual_video
        factor = pipe.vae_scale_factor
        if min(video.height, video.width) < factor:
            raise ApplyError(f"videos of {video} have no latents: each side needs {factor} pixels at least")
        embeds, mask = pipe.encode_prompt(prompts)  # (B, 1, L, C), (B, L)
        embeds, mask = embeds.to(self.device), mask.to(self.device)
        null = self.model.y_embedder.y_embedding.to(embeds).expand_as(embeds)
        frames, height, width = video
        told = {"num_frames": frames, "height": height, "width": width, "ar": height / width}
        told["fps"] = usual_fps(frames)
        rows, dtype = len(prompts), self.model.dtype
        sizes = {name: torch.full((rows,), value, device=self.device, dtype=dtype) for name, value in told.items()}
        latents = (frames, height // factor, width // factor)
        return Condition(
            conditional={"y": embeds, "mask": mask, **sizes},
            unconditional={"y": null, "mask": mask, **sizes},
            latent_shape=(self.model.in_channels, *latents),
            guided_channels=GUIDED_CHANNELS,
            latents_dtype=torch.float32,
        )

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        given = dict(self._signature.bind(self.model, *args, **kwargs).arguments)
        latents = given["x"]
        if latents.dim() != 5:
            raise StepError(f"STDiT2 takes latents (B, C, frames, h, w), got {tuple(latents.shape)}")
        sizes = {name: given[name] for name in SIZES}
        return Call(latents, given["timestep"], given["y"], given.get("mask"), sizes)
