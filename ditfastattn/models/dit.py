"""diffusers' DiTTransformer2DModel (DiT, arXiv 2212.09748): adaLN-Zero blocks, labels as condition."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiTTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from ditfastattn.layout import Layout
from ditfastattn.models.base import BlockAdapter, Call, ModelAdapter
from plans import ModelSpec


@dataclass
class AdaLNState:
    """A block in progress. Modulation tensors are (B, 1, C)."""

    hidden: Tensor  # (B, N, C)
    shift_attn: Tensor | None
    scale_attn: Tensor | None
    gate_attn: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


class DiTBlock(BlockAdapter[AdaLNState]):
    """BasicTransformerBlock with norm_type "ada_norm_zero"."""

    module: Any

    def __init__(self, module: BasicTransformerBlock) -> None:
        self.module = module
        self.attention: Attention = module.attn1

    def begin(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, skip_attention: bool, **kwargs: Any
    ) -> AdaLNState:
        if attention_mask is not None:
            raise NotImplementedError("self-attention masks are not supported; DiT has none")
        norm: Any = self.module.norm1
        condition = norm.silu(norm.emb(kwargs["timestep"], kwargs["class_labels"], hidden_dtype=hidden_states.dtype))
        if skip_attention and _is_plain(norm.linear):
            width = norm.linear.in_features
            bias = None if norm.linear.bias is None else norm.linear.bias[2 * width :]
            chunks = F.linear(condition, norm.linear.weight[2 * width :], bias)[:, None].chunk(4, dim=2)
            return AdaLNState(hidden_states, None, None, *chunks)
        return AdaLNState(hidden_states, *norm.linear(condition)[:, None].chunk(6, dim=2))

    def qkv(self, state: AdaLNState, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        assert state.scale_attn is not None and state.shift_attn is not None
        x = self.module.norm1.norm(state.hidden[rows]) * (1 + state.scale_attn[rows]) + state.shift_attn[rows]
        attention = self.attention
        heads = (x.shape[0], x.shape[1], attention.heads, -1)
        q = attention.to_q(x).view(heads)  # (rows, N, H, D)
        k = attention.to_k(x).view(heads)
        v = attention.to_v(x).view(heads)
        return q, k, v

    def project(self, core: Tensor) -> Tensor:
        projection, dropout = self.attention.to_out
        return dropout(projection(core.flatten(2)))

    def finish(self, state: AdaLNState, attention_output: Tensor) -> Tensor:
        hidden = state.gate_attn * attention_output + state.hidden
        x = self.module.norm3(hidden) * (1 + state.scale_mlp) + state.shift_mlp
        return state.gate_mlp * self.module.ff(x) + hidden


class DiT(ModelAdapter):
    """The transformer of diffusers' DiTPipeline. A guided batch is [conditional, unconditional]."""

    guided_layout = Layout.COND_FIRST
    per_image = frozenset({"timestep", "class_labels"})

    def __init__(self, model: DiTTransformer2DModel) -> None:
        super().__init__(model)
        self._blocks = [DiTBlock(block) for block in model.transformer_blocks]
        self._signature = inspect.signature(type(model).forward)

    @property
    def blocks(self) -> list[BlockAdapter[Any]]:
        return list(self._blocks)

    @property
    def null_label(self) -> int:
        """The label of the unconditional branch: one past the last class."""
        return int(self.model.config.num_embeds_ada_norm)

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

    def grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.model.config.patch_size
        return height // patch, width // patch

    def obstacles(self) -> list[str]:
        found = [reason for i, block in enumerate(self._blocks) for reason in _block_obstacles(i, block)]
        if any(module._compiled_call_impl is not None for module in self.model.modules()):
            found.append("it was compiled with module.compile(): compiled code would run past the plan; load it anew")
        if self.model.training or self.model.gradient_checkpointing:
            found.append("it is set up for training; call eval() and disable_gradient_checkpointing()")
        if any(parameter.is_meta for parameter in self.model.parameters()):
            found.append("its parameters are not loaded (sequential CPU offload?); undo that first")
        if [block.module for block in self._blocks] != list(self.model.transformer_blocks):
            found.append("its blocks are not those that the plan was applied to; apply the plan anew")
        return found

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        bound = self._signature.bind(self.model, *args, **kwargs).arguments
        return Call(bound["hidden_states"], bound.get("timestep"), bound.get("class_labels"))

    def is_guided(self, call: Call) -> bool:
        batch = call.latents.shape[0]
        if call.condition is None or batch % 2:
            return False
        null = (call.condition == self.null_label).tolist()
        return not any(null[: batch // 2]) and all(null[batch // 2 :])

    def mixes_branches(self, call: Call) -> bool:
        if call.condition is None:
            return False
        null = (call.condition == self.null_label).tolist()
        return any(null) and not all(null)


def _is_plain(linear: nn.Module) -> bool:
    """A Linear whose weight is all there is to it: LoRA layers, hooks and patched forwards must be called, not read."""
    hooks = linear._forward_hooks or linear._forward_pre_hooks
    return type(linear) is nn.Linear and not hooks and "forward" not in linear.__dict__


def _block_obstacles(index: int, block: DiTBlock) -> list[str]:
    attention = block.attention
    where = f"block {index}"
    found = []
    if type(attention.processor) is not AttnProcessor2_0:
        found.append(
            f"{where}: attention processor {type(attention.processor).__name__} would be bypassed; "
            "call set_attn_processor(AttnProcessor2_0()) first and choose the kernel in apply()"
        )
    if getattr(attention, "fused_projections", False):
        found.append(f"{where}: the QKV projections are fused; call unfuse_qkv_projections() first")
    if attention.norm_q is not None or attention.norm_k is not None or attention.residual_connection:
        found.append(f"{where}: attention with q/k-norm or an inner residual is not what DiT has")
    if attention.rescale_output_factor != 1 or block.module._chunk_size is not None:
        found.append(f"{where}: output rescaling and chunked feed-forward are not supported; switch them off")
    if attention is not block.module.attn1:
        found.append(f"{where}: its attn1 was replaced; apply the plan anew")
    for name, module in (("attn1", attention), ("norm1", block.module.norm1)):
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            found.append(f"{where}: {name} carries hooks that would be bypassed; remove them first")
    return found
