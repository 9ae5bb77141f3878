"""diffusers' DiTTransformer2DModel (DiT, arXiv 2212.09748): adaLN-Zero blocks, labels as condition."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from ditfastattn.condition import Condition, FromLabels
from ditfastattn.layout import Layout
from ditfastattn.models.arithmetic import arithmetic_for, is_plain
from ditfastattn.models.base import Call, Conditioning
from ditfastattn.models.basic_block import AdaLNBlock, AdaLNModel, AdaLNState, enter_plain_mlp, refuse_mask
from ditfastattn.models.labelled import Labelled, square
from plans import SiteName


class DiTBlock(AdaLNBlock[AdaLNState]):
    """BasicTransformerBlock with norm_type "ada_norm_zero"."""

    @property
    def input_norm(self) -> nn.Module:
        return self.module.norm1.norm

    def begin(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, skip_attention: bool, **kwargs: Any
    ) -> AdaLNState:
        refuse_mask(attention_mask)
        norm: Any = self.module.norm1
        condition = norm.silu(norm.emb(kwargs["timestep"], kwargs["class_labels"], hidden_dtype=hidden_states.dtype))
        if skip_attention and is_plain(norm.linear):
            width = norm.linear.in_features
            bias = None if norm.linear.bias is None else norm.linear.bias[2 * width :]
            chunks = F.linear(condition, norm.linear.weight[2 * width :], bias)[:, None].chunk(4, dim=2)
            return AdaLNState(hidden_states, None, None, *chunks)
        return AdaLNState(hidden_states, *norm.linear(condition)[:, None].chunk(6, dim=2))

    def state(
        self, hidden: Tensor, modulation: Tensor, context: tuple[Tensor, ...], joint: tuple[Tensor, ...]
    ) -> AdaLNState:
        return AdaLNState(hidden, *modulation.split(1, dim=1), arithmetic=arithmetic_for(hidden), joint=joint)

    def modulation(self, timesteps: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """(R,), (R,) -> (R, 6, C): shift, scale and gate of the attention, then of the MLP."""
        norm: Any = self.module.norm1
        condition = norm.silu(norm.emb(timesteps, labels, hidden_dtype=dtype))
        return norm.linear(condition).unflatten(1, (6, -1))

    def enter(
        self, site: SiteName, state: AdaLNState, hidden: Tensor, output: Tensor, rows: slice | None
    ) -> tuple[Tensor, Tensor | None]:
        return enter_plain_mlp(state, self.module.norm3, hidden, output, rows)


class DiT(Labelled, FromLabels, AdaLNModel):
    """The transformer of diffusers' DiTPipeline. A guided batch is [conditional, unconditional]."""

    guided_layout = Layout.COND_FIRST
    per_image = frozenset({"timestep", "class_labels"})

    def __init__(self, model: DiTTransformer2DModel) -> None:
        super().__init__(model)
        self._blocks = [DiTBlock(block) for block in model.transformer_blocks]

    @property
    def null_label(self) -> int:
        """The label of the unconditional branch: one past the last class."""
        return int(self.model.config.num_embeds_ada_norm)

    def condition(self, labels: Sequence[int]) -> Condition:
        given = torch.tensor(labels, device=self.device)
        null = torch.full_like(given, self.null_label)
        return Condition({"class_labels": given}, {"class_labels": null}, self.latent_shape)

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        given = self.arguments(args, kwargs)
        return Call(given["hidden_states"], given.get("timestep"), given.get("class_labels"))

    def example_condition(self, latents: Tensor) -> dict[str, Any]:
        return {"class_labels": torch.arange(len(latents), device=latents.device) % self.null_label}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        side = square(height, width) // self.model.config.patch_size
        return side, side

    def conditioning(self, timesteps: Tensor, call: Call) -> Conditioning:
        steps, batch = len(timesteps), call.latents.shape[0]
        t, labels = timesteps.repeat_interleave(batch), self.labels_of(call).repeat(steps)  # (S * B,) each
        dtype = call.latents.dtype
        modulations = [block.modulation(t, labels, dtype).unflatten(0, (steps, batch)) for block in self._blocks]
        blocks = torch.stack(modulations, 1)
        model = self.model
        condition = self._blocks[0].module.norm1.emb(t, labels, hidden_dtype=dtype)
        head = model.proj_out_1(F.silu(condition)).unflatten(1, (2, -1)).unflatten(0, (steps, batch))
        return Conditioning(blocks, head)  # (S, L, B, 6, C), (S, B, 2, C)

    def context(self, call: Call) -> tuple[Tensor, ...]:
        return ()

    @property
    def last_projection(self) -> nn.Module:
        return self.model.proj_out_2
