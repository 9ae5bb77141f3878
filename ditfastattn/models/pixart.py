"""diffusers' PixArtTransformer2DModel, of PixArt-alpha (arXiv 2310.00426) and PixArt-Sigma (arXiv 2403.04692)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from ditfastattn.condition import Condition, FromPrompts, VideoSize
from ditfastattn.errors import StepError
from ditfastattn.layout import Layout
from ditfastattn.models.arithmetic import arithmetic_for
from ditfastattn.models.base import Call, Conditioning
from ditfastattn.models.basic_block import AdaLNBlock, AdaLNModel, AdaLNState, refuse_mask
from ditfastattn.models.prompted import Prompted
from plans import SiteName

WORDS = 300  # of a prompt, in PixArt-Sigma's pipeline


@dataclass
class PixArtState(AdaLNState):
    """A block in progress, with what its cross-attention reads."""

    text: Tensor | None = None  # (B, T, C)
    text_mask: Tensor | None = None  # (B, 1, T), added to the scores


class PixArtBlock(AdaLNBlock[PixArtState]):
    """BasicTransformerBlock with norm_type "ada_norm_single".

    Modulation is the block's own table plus six vectors that the model computes once for all blocks (PixArt-alpha,
    Sec. 2.3). Between self-attention and MLP stands a masked cross-attention without norm and gate.
    """

    @property
    def parts(self) -> tuple[SiteName, ...]:
        return ("mlp",) if self.module.attn2 is None else ("cross", "mlp")

    @property
    def input_norm(self) -> nn.Module:
        return self.module.norm1

    def begin(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        *,
        skip_attention: bool,
    ) -> PixArtState:
        """``timestep`` is (B, 6 C): the modulation of all blocks. The last two arguments are not used by PixArt."""
        refuse_mask(attention_mask)
        _refuse_extras(cross_attention_kwargs)
        assert timestep is not None
        first = 2 if skip_attention else 0  # shift and scale of the attention input come first
        vectors = timestep.reshape(hidden_states.shape[0], 6, -1)[:, first:]  # (B, 6 or 4, C)
        parts = (self.module.scale_shift_table[None, first:] + vectors).chunk(6 - first, dim=1)
        shift, scale = (None, None) if skip_attention else parts[:2]
        gate, shift_mlp, scale_mlp, gate_mlp = parts[-4:]
        text, text_mask = encoder_hidden_states, encoder_attention_mask
        return PixArtState(hidden_states, shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, text, text_mask)

    def state(
        self, hidden: Tensor, modulation: Tensor, context: tuple[Tensor, ...], joint: tuple[Tensor, ...]
    ) -> PixArtState:
        do = arithmetic_for(hidden)
        return PixArtState(hidden, *modulation.split(1, dim=1), *context, arithmetic=do, joint=joint)

    def enter(
        self, site: SiteName, state: PixArtState, hidden: Tensor, output: Tensor, rows: slice | None
    ) -> tuple[Tensor, Tensor | None]:
        do = state.arithmetic
        hidden = do.add_gated(hidden, output, state.gate_attn) if site == self.parts[0] else do.add(hidden, output)
        if rows is None:
            return hidden, None
        x = hidden[rows]
        if site == "mlp":
            x = do.modulated(self.module.norm2, x, state.shift_mlp[rows], state.scale_mlp[rows])
        return hidden, x

    def compute(self, site: SiteName, state: PixArtState, x: Tensor, rows: slice) -> Tensor:
        if site == "mlp":
            return super().compute(site, state, x, rows)
        assert state.text is not None
        mask = None if state.text_mask is None else state.text_mask[rows]
        attended: Tensor = self.module.attn2(x, encoder_hidden_states=state.text[rows], attention_mask=mask)
        return attended


class PixArt(Prompted, FromPrompts, AdaLNModel):
    """The transformer of diffusers' PixArtAlphaPipeline and PixArtSigmaPipeline. A guided batch is [uncond, cond]."""

    guided_layout = Layout.UNCOND_FIRST
    usual_guidance = 4.5  # DiTFastAttn, and the pipelines' own default
    encoders = ("text_encoder", "tokenizer")
    per_image = frozenset({"timestep", "encoder_hidden_states", "encoder_attention_mask", "added_cond_kwargs"})

    def __init__(self, model: PixArtTransformer2DModel) -> None:
        super().__init__(model)
        self._blocks = [PixArtBlock(block) for block in model.transformer_blocks]

    def encoded(self, pipe: Any, prompts: list[str], negative_prompt: str, video: VideoSize | None) -> Condition:
        """As the pipelines have it: as many words as they take, and the sizes that PixArt-alpha embeds at 1024 px.

        Texts are not cleaned of HTML and the like: that would depend on which packages are installed.
        """
        text, mask, negative, negative_mask = pipe.encode_prompt(
            prompts, negative_prompt=negative_prompt, device=self.device, clean_caption=False
        )  # (B, T, C), (B, T), twice
        sizes = {"resolution": None, "aspect_ratio": None}
        if self.model.use_additional_conditions:
            height, width = (side * pipe.vae_scale_factor for side in self.latent_shape[1:])
            sizes = {
                "resolution": text.new_tensor([[height, width]] * len(prompts)),
                "aspect_ratio": text.new_tensor([[height / width]] * len(prompts)),
            }
        return Condition(_arguments(text, mask, sizes), _arguments(negative, negative_mask, sizes), self.latent_shape)

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        given = self.arguments(args, kwargs)
        refuse_mask(given.get("attention_mask"))
        _refuse_extras(given.get("cross_attention_kwargs"))
        mask, sizes = given.get("encoder_attention_mask"), given.get("added_cond_kwargs")
        return Call(given["hidden_states"], given.get("timestep"), given.get("encoder_hidden_states"), mask, sizes)

    def example_condition(self, latents: Tensor) -> dict[str, Any]:
        """Prompts of 300 words (PixArt-Sigma; -alpha has 120), of which every row hides another number."""
        config, batch = self.model.config, len(latents)
        width = config.caption_channels or config.cross_attention_dim
        words = torch.arange(WORDS, device=latents.device)
        shown = torch.arange(batch, device=latents.device)[:, None] * 10 % WORDS + 1  # (B, 1)
        sizes = None
        if self.model.use_additional_conditions:
            pixels = latents.new_tensor([8.0 * size for size in latents.shape[-2:]])
            sizes = {"resolution": pixels.expand(batch, 2), "aspect_ratio": (pixels[:1] / pixels[1:]).expand(batch, 1)}
        return {
            "encoder_hidden_states": latents.new_empty((batch, WORDS, width)).normal_(),
            "encoder_attention_mask": (words < shown).to(latents.dtype),
            "added_cond_kwargs": sizes,
        }

    def conditioning(self, timesteps: Tensor, call: Call) -> Conditioning:
        model = self.model
        steps, batch = len(timesteps), call.latents.shape[0]
        if model.use_additional_conditions and not call.sizes:
            raise StepError(
                "this model embeds image sizes: give its call added_cond_kwargs with resolution and aspect_ratio"
            )
        sizes = {
            name: None if size is None else size.repeat(steps, *[1] * (size.dim() - 1))
            for name, size in (call.sizes or {}).items()
        }
        six, embedded = model.adaln_single(
            timesteps.repeat_interleave(batch), sizes, batch_size=steps * batch, hidden_dtype=call.latents.dtype
        )
        vectors = six.unflatten(1, (6, -1)).unflatten(0, (steps, batch))  # (S, B, 6, C)
        tables = torch.stack([block.module.scale_shift_table for block in self._blocks])  # (L, 6, C)
        head = (model.scale_shift_table[None] + embedded[:, None]).unflatten(0, (steps, batch))
        return Conditioning(tables[None, :, None] + vectors[:, None], head)  # (S, L, B, 6, C), (S, B, 2, C)

    def context(self, call: Call) -> tuple[Tensor, ...]:
        """Prompts as the blocks read them (B, T, C), and what is added to their scores (B, 1, T)."""
        text, mask = call.condition, call.mask
        assert text is not None
        if self.model.caption_projection is not None:
            text = self.model.caption_projection(text)
        if mask is None:
            mask = text.new_zeros((text.shape[0], 1, text.shape[1]))
        elif mask.dim() == 2:  # 1 for a word, as the model's own forward takes it
            mask = ((1 - mask.to(call.latents.dtype)) * -10000.0)[:, None]
        return text, mask

    @property
    def last_projection(self) -> nn.Module:
        return self.model.proj_out


def _arguments(text: Tensor, mask: Tensor, sizes: Mapping[str, Tensor | None]) -> dict[str, Any]:
    return {"encoder_hidden_states": text, "encoder_attention_mask": mask, "added_cond_kwargs": sizes}


def _refuse_extras(cross_attention_kwargs: Mapping[str, Any] | None) -> None:
    if cross_attention_kwargs:
        raise StepError("cross_attention_kwargs are not supported by a plan: call the transformer without them")
