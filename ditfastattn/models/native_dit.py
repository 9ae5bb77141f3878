"""facebookresearch/DiT as it is: the original ``models.DiT`` (arXiv 2212.09748), which no package carries.

It is recognised by its parts, and what those compute is compared with what is computed here before a plan is applied:
a relative of DiT may have the same parts and another forward.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from ditfastattn.errors import StepError
from ditfastattn.layout import Layout
from ditfastattn.models.arithmetic import arithmetic_for, is_plain, project
from ditfastattn.models.base import Call, Conditioning, PreparedBlock, PreparedModel
from ditfastattn.models.basic_block import AdaLNState, enter_plain_mlp
from ditfastattn.models.labelled import Labelled, square
from ditfastattn.models.native_check import block_disagreements, end_disagreements
from ditfastattn.models.obstacles import bypassed, common_obstacles
from ditfastattn.models.parts import WithParts, hidden_width
from plans import ModelSpec, SiteName

PARTS = (
    *("x_embedder.proj", "pos_embed", "t_embedder", "y_embedder.embedding_table", "y_embedder.num_classes"),
    *("blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.attn.num_heads", "blocks.0.norm2"),
    *("blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.0.adaLN_modulation", "unpatchify"),
    *("final_layer.norm_final", "final_layer.linear", "final_layer.adaLN_modulation"),
)


def missing_parts(model: nn.Module) -> list[str]:
    """Which of the original's parts a model lacks; none, and it may be one."""

    def has(path: str) -> bool:
        part: Any = model
        for name in path.split("."):
            if name.isdecimal():
                part = next(iter(part), None) if isinstance(part, nn.ModuleList) else None
            else:
                part = getattr(part, name, None)
        return part is not None

    found = [path for path in PARTS if not has(path)]
    # A wrapper (torch.compile's, PEFT's) shows its model's parts, but takes any arguments.
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    if sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters) < 3:
        found.insert(0, "forward(x, t, y)")
    return found


class NativeBlock(WithParts[AdaLNState], PreparedBlock[AdaLNState]):
    """DiTBlock: ``attn`` is timm's Attention (``qkv`` and ``proj``), ``mlp`` timm's Mlp.

    FULL is torch's scaled_dot_product_attention, as in timm since 0.9: bit for bit what the block computes by itself.
    Where an older timm materialises the softmax, it is the same to rounding.
    """

    module: Any

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def begin(self, x: Tensor, c: Tensor, *, skip_attention: bool) -> AdaLNState:  # type: ignore[override]
        activation, linear = self.module.adaLN_modulation
        if skip_attention and is_plain(linear):
            width = linear.in_features
            bias = None if linear.bias is None else linear.bias[2 * width :]
            four = F.linear(activation(c), linear.weight[2 * width :], bias)[:, None].chunk(4, dim=2)
            return AdaLNState(x, None, None, *four)
        return AdaLNState(x, *self.module.adaLN_modulation(c)[:, None].chunk(6, dim=2))

    def state(
        self, hidden: Tensor, modulation: Tensor, context: tuple[Tensor, ...], joint: tuple[Tensor, ...]
    ) -> AdaLNState:
        return AdaLNState(hidden, *modulation.split(1, dim=1), arithmetic=arithmetic_for(hidden))

    def joint_weights(self) -> list[list[Tensor]]:
        return []  # q, k and v are one product already

    def qkv(self, state: AdaLNState, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        assert state.scale_attn is not None and state.shift_attn is not None
        x, shift, scale = state.hidden[rows], state.shift_attn[rows], state.scale_attn[rows]
        attention = self.module.attn
        x = attention.qkv(state.arithmetic.modulated(self.module.norm1, x, shift, scale))
        q, k, v = x.unflatten(2, (3, attention.num_heads, -1)).unbind(2)  # (rows, N, H, D)
        return q, k, v

    def project(self, core: Tensor, out: Tensor | None = None) -> Tensor:
        return project(self.module.attn.proj, core, out)

    @property
    def mlp_hidden(self) -> int | None:
        return hidden_width(self.module.mlp)

    def stream(self, state: AdaLNState) -> Tensor:
        return state.hidden

    def enter(
        self, site: SiteName, state: AdaLNState, hidden: Tensor, output: Tensor, rows: slice | None
    ) -> tuple[Tensor, Tensor | None]:
        return enter_plain_mlp(state, self.module.norm2, hidden, output, rows)

    def compute(self, site: SiteName, state: AdaLNState, x: Tensor, rows: slice) -> Tensor:
        return state.arithmetic.feed_forward(self.module.mlp, x)

    def leave(self, state: AdaLNState, hidden: Tensor, output: Tensor) -> Tensor:
        return state.arithmetic.add_gated(hidden, output, state.gate_mlp)


class NativeDiT(Labelled, PreparedModel):
    """``forward(x, t, y)`` on [conditional, unconditional], also where ``forward_with_cfg`` makes that batch.

    Its plans are those of diffusers' DiTTransformer2DModel, whose weights are the same numbers in another arrangement
    (``ditfastattn.original_dit``): a plan calibrated on the converted checkpoint fits the original.
    """

    guided_layout = Layout.COND_FIRST
    per_image = frozenset({"c", "argument 1"})

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._blocks = [NativeBlock(block) for block in model.blocks]
        self._patch = int(model.x_embedder.proj.stride[0])
        self._signature = inspect.signature(type(model).forward)
        entry = getattr(type(model), "forward_with_cfg", None)
        self._guided_signature = inspect.signature(entry) if entry else None
        if self._guided_signature and "cfg_scale" in self._guided_signature.parameters:
            self.guided_entry = "forward_with_cfg"

    @property
    def blocks(self) -> list[NativeBlock]:
        return self._blocks

    @property
    def null_label(self) -> int:
        return int(self.model.y_embedder.num_classes)

    def spec(self) -> ModelSpec:
        model, attention = self.model, self._blocks[0].module.attn
        return ModelSpec(
            class_name=DiTTransformer2DModel.__name__,
            layers=len(self._blocks),
            heads=attention.num_heads,
            head_dim=attention.proj.in_features // attention.num_heads,
            tokens=model.pos_embed.shape[1],
            in_channels=model.x_embedder.proj.in_channels,
            out_channels=model.final_layer.linear.out_features // self._patch**2,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        side = square(height, width) // self._patch
        return side, side

    def obstacles(self) -> list[str]:
        found = common_obstacles(self.model)
        for i, block in enumerate(self._blocks):
            parts = (("attn", block.module.attn), ("norm1", block.module.norm1))
            found += [f"block {i}: {fault}" for name, part in parts for fault in bypassed(name, part)]
        if self.model.training:
            found.append("it is set up for training; call eval()")
        if [block.module for block in self._blocks] != list(self.model.blocks):
            found.append("its blocks are not those that the plan was applied to; apply the plan anew")
        return found

    @torch.no_grad()
    def disagreements(self, prepared: bool) -> list[str]:
        found = block_disagreements(self)
        return found + end_disagreements(self) if prepared and not found else found

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        bound = self._signature.bind(self.model, *args, **kwargs)
        given = [name for name, value in bound.arguments.items() if value is not None]
        bound.apply_defaults()
        names = list(bound.arguments)
        if others := [name for name in given if name not in names[:4]]:
            raise StepError(
                f"a plan knows the latents, timesteps and labels of DiT's forward(x, t, y), but this call also brings "
                f"{', '.join(others)}: call it without"
            )
        latents, timestep, labels = (bound.arguments[name] for name in names[1:4])
        if labels is None:
            raise StepError(f"this call brings no labels ({names[3]}), by which a plan tells its branches: pass them")
        return Call(latents, timestep, labels)

    def given_scale(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        assert self._guided_signature is not None
        bound = self._guided_signature.bind(self.model, *args, **kwargs)
        bound.apply_defaults()
        scale = bound.arguments["cfg_scale"]
        values = set(scale.flatten().tolist()) if isinstance(scale, Tensor) else {scale}
        if len(values) != 1:
            raise StepError(f"a plan has one guidance scale for all rows, but cfg_scale= holds {len(values)} of them")
        return float(values.pop())

    def example(self, batch: int, tokens: int) -> dict[str, Any]:
        """Names are those of the original's forward. ``tokens`` must be the model's: its positions are fixed."""
        rows = int(tokens**0.5)
        size = (batch, self.spec().in_channels, rows * self._patch, rows * self._patch)
        x = torch.randn(size, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(batch, device=self.device) % self.null_label
        timesteps = torch.full((batch,), 500, device=self.device)
        return {"x": x.to(self.device, self.dtype), "t": timesteps, "y": labels}

    def conditioning(self, timesteps: Tensor, call: Call) -> Conditioning:
        steps, batch, model = len(timesteps), call.latents.shape[0], self.model
        t, labels = timesteps.repeat_interleave(batch), self.labels_of(call).repeat(steps)  # (S * B,) each
        condition = model.t_embedder(t) + model.y_embedder(labels, False)

        def modulation(part: Callable[[Tensor], Tensor], vectors: int) -> Tensor:
            return part(condition).unflatten(1, (vectors, -1)).unflatten(0, (steps, batch))

        blocks = torch.stack([modulation(block.module.adaLN_modulation, 6) for block in self._blocks], 1)
        return Conditioning(blocks, modulation(model.final_layer.adaLN_modulation, 2))  # (S, L, B, 6, C), (S, B, 2, C)

    def context(self, call: Call) -> tuple[Tensor, ...]:
        return ()

    def embed(self, latents: Tensor) -> Tensor:
        embedded: Tensor = self.model.x_embedder(latents) + self.model.pos_embed
        return embedded

    def head(self, hidden: Tensor, modulation: Tensor, height: int, width: int) -> Tensor:
        final = self.model.final_layer
        shift, scale = modulation.split(1, dim=1)  # (B, 1, C)
        output: Tensor = self.model.unpatchify(final.linear(final.norm_final(hidden) * (1 + scale) + shift))
        return output

    def wrap(self, output: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return output
