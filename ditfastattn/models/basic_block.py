"""What the families built of diffusers' BasicTransformerBlock share: modulated self-attention, and its obstacles."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ditfastattn.errors import StepError
from ditfastattn.models.arithmetic import PLAIN, Plain, is_plain, project
from ditfastattn.models.base import ModelAdapter, PreparedBlock, PreparedModel
from ditfastattn.models.obstacles import bypassed, common_obstacles
from ditfastattn.models.parts import WithParts, hidden_width
from plans import ModelSpec, SiteName


@dataclass
class AdaLNState:
    """A block in progress. Modulation tensors are (B, 1, C); the first two are None where attention is skipped."""

    hidden: Tensor  # (B, N, C)
    shift_attn: Tensor | None
    scale_attn: Tensor | None
    gate_attn: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor
    arithmetic: Plain = field(default=PLAIN, kw_only=True)
    joint: tuple[Tensor, ...] = field(default=(), kw_only=True)  # weights of q, k and v together


State = TypeVar("State", bound=AdaLNState)


class AdaLNBlock(WithParts[State], PreparedBlock[State]):
    """A BasicTransformerBlock whose self-attention reads a modulated layer norm."""

    module: Any

    def __init__(self, module: BasicTransformerBlock) -> None:
        self.module = module
        self.attention: Attention = module.attn1

    @property
    @abstractmethod
    def input_norm(self) -> nn.Module:
        """The plain layer norm before the modulation that feeds self-attention."""

    def qkv(self, state: State, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        assert state.scale_attn is not None and state.shift_attn is not None
        x, shift, scale = state.hidden[rows], state.shift_attn[rows], state.scale_attn[rows]
        x = state.arithmetic.modulated(self.input_norm, x, shift, scale)
        return state.arithmetic.qkv(self.attention, x, state.joint)

    def joint_weights(self) -> list[list[Tensor]]:
        projections = [self.attention.to_q, self.attention.to_k, self.attention.to_v]
        if not all(is_plain(projection) and projection.bias is not None for projection in projections):
            return []
        return [[projection.weight for projection in projections], [projection.bias for projection in projections]]

    def project(self, core: Tensor, out: Tensor | None = None) -> Tensor:
        return project(self.attention.to_out[0], core, out)  # the dropout after it does nothing in eval mode

    @property
    def mlp_hidden(self) -> int | None:
        return hidden_width(self.module.ff)

    def stream(self, state: State) -> Tensor:
        return state.hidden

    def compute(self, site: SiteName, state: State, x: Tensor, rows: slice) -> Tensor:
        return state.arithmetic.feed_forward(self.module.ff, x)

    def leave(self, state: State, hidden: Tensor, output: Tensor) -> Tensor:
        return state.arithmetic.add_gated(hidden, output, state.gate_mlp)

    def obstacles(self) -> list[str]:
        """Why this block cannot be run piece by piece with the same result as its own forward."""
        attention, module = self.attention, self.module
        found = []
        if type(attention.processor) is not AttnProcessor2_0:
            found.append(
                f"attention processor {type(attention.processor).__name__} would be bypassed; "
                "call attn1.set_processor(AttnProcessor2_0()) first and choose the kernel in apply()"
            )
        if getattr(attention, "fused_projections", False):
            found.append("the QKV projections are fused; call unfuse_qkv_projections() first")
        if attention.norm_q is not None or attention.norm_k is not None or attention.residual_connection:
            found.append("attention with q/k-norm or an inner residual is not supported")
        if attention.rescale_output_factor != 1 or module._chunk_size is not None:
            found.append("output rescaling and chunked feed-forward are not supported; switch them off")
        if module.pos_embed is not None or module.only_cross_attention or hasattr(module, "fuser"):
            found.append("positions inside the block, gated or cross-attention in place of self-attention are unknown")
        if attention is not module.attn1:
            found.append("its attn1 was replaced; apply the plan anew")
        return found + bypassed("attn1", attention) + bypassed("norm1", module.norm1)


def enter_plain_mlp(
    state: AdaLNState, norm: nn.Module, hidden: Tensor, attention_output: Tensor, rows: slice | None
) -> tuple[Tensor, Tensor | None]:
    """``WithParts.enter`` where nothing stands between attention and the MLP's ``norm``."""
    do = state.arithmetic
    if rows == slice(None):
        return do.add_gated_modulated(norm, hidden, attention_output, state.gate_attn, state.shift_mlp, state.scale_mlp)
    hidden = do.add_gated(hidden, attention_output, state.gate_attn)
    if rows is None:
        return hidden, None
    return hidden, do.modulated(norm, hidden[rows], state.shift_mlp[rows], state.scale_mlp[rows])


def refuse_mask(attention_mask: Tensor | None) -> None:
    """Raises StepError: no method is defined for a masked self-attention."""
    if attention_mask is not None:
        raise StepError("self-attention masks are not supported by a plan: call the transformer without attention_mask")


class BasicBlockModel(ModelAdapter):
    """A transformer of diffusers made of such blocks, over the patches of latents."""

    _blocks: list[Any]  # AdaLNBlock, in the order in which they run

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._signature = inspect.signature(type(model).forward)

    @property
    def blocks(self) -> list[PreparedBlock[Any]]:
        return list(self._blocks)

    def listed_blocks(self) -> list[nn.Module]:
        """The model's own blocks, in the order in which it runs them."""
        return list(self.model.transformer_blocks)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype  # diffusers' layerwise casting computes in another than it stores
        return dtype

    def spec(self) -> ModelSpec:
        config = self.model.config
        return ModelSpec(
            class_name=type(self.model).__name__,
            layers=config.num_layers,
            heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            tokens=self.tokens(config.sample_size, config.sample_size),
            in_channels=config.in_channels,
            out_channels=self.model.out_channels,
        )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w) of the images the model was trained on, (C, T, h, w) of the videos."""
        config = self.model.config
        return config.in_channels, config.sample_size, config.sample_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.model.config.patch_size
        return height // patch, width // patch

    def obstacles(self) -> list[str]:
        placed = zip(self.places, self._blocks, strict=True)
        found = [f"{place}: {reason}" for place, block in placed for reason in block.obstacles()]
        found += common_obstacles(self.model)
        if self.model.training or self.model.gradient_checkpointing:
            found.append("it is set up for training; call eval() and disable_gradient_checkpointing()")
        if [block.module for block in self._blocks] != self.listed_blocks():
            found.append("its blocks are not those that the plan was applied to; apply the plan anew")
        return found

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call of ``model.forward``, by name."""
        return dict(self._signature.bind(self.model, *args, **kwargs).arguments)


class AdaLNModel(BasicBlockModel, PreparedModel):
    """One whose steps can be prepared: an image at a time, embedded and put together as in DiT."""

    def example(self, batch: int, tokens: int) -> dict[str, Any]:
        config, parameter = self.model.config, next(self.model.parameters())
        rows = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
        size = (rows * config.patch_size, tokens // rows * config.patch_size)
        latents = torch.randn((batch, config.in_channels, *size), dtype=parameter.dtype, device=parameter.device)
        timestep = torch.full((batch,), 500, device=parameter.device)
        return {"hidden_states": latents, "timestep": timestep, **self.example_condition(latents)}

    @abstractmethod
    def example_condition(self, latents: Tensor) -> dict[str, Any]:
        """The other arguments of :meth:`example`, for latents (B, C, h, w)."""

    def embed(self, latents: Tensor) -> Tensor:
        embedded: Tensor = self.model.pos_embed(latents)
        return embedded

    @property
    @abstractmethod
    def last_projection(self) -> nn.Module:
        """From tokens to patches."""

    def head(self, hidden: Tensor, modulation: Tensor, height: int, width: int) -> Tensor:
        model, patch = self.model, self.model.config.patch_size
        shift, scale = modulation.split(1, dim=1)  # (B, 1, C)
        x = self.last_projection(model.norm_out(hidden) * (1 + scale) + shift)
        x = x.unflatten(2, (patch, patch, model.out_channels)).unflatten(1, (height // patch, width // patch))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, C_out, h, w)

    def wrap(self, output: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        given = self.arguments(args, kwargs)
        return Transformer2DModelOutput(sample=output) if given.get("return_dict", True) else (output,)
