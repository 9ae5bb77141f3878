"""diffusers' LatteTransformer3DModel (Latte, arXiv 2401.03048, variant 1): spatial and temporal blocks in turn."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from diffusers import LatteTransformer3DModel
from torch import nn

from ditfastattn.condition import Condition, FromPrompts, VideoSize
from ditfastattn.errors import StepError
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call
from ditfastattn.models.basic_block import BasicBlockModel
from ditfastattn.models.pixart import PixArtBlock
from ditfastattn.models.prompted import Prompted
from plans import ModelSpec, TemporalShape


class LatteBlock(PixArtBlock):
    """Self-attention between the tokens of a frame, cross-attention, MLP: PixArt's block on (B T, N, C)."""

    def obstacles(self) -> list[str]:
        kind = self.module.norm_type
        if kind != "ada_norm_single":
            return [f"its norm_type is {kind!r}, but Latte's blocks are 'ada_norm_single'; load Latte's own config"]
        return super().obstacles()


class TemporalBlock(LatteBlock):
    """The same without cross-attention, between the frames of one place: on (B N, T, C)."""

    site = "temporal"


class Latte(Prompted, FromPrompts, BasicBlockModel):
    """The transformer of diffusers' LattePipeline. A guided batch is [uncond, cond].

    The batch is the slowest dimension of the rows at both sites, (B T, N, C) and (B N, T, C), so that each guidance
    branch is one half of them. What stands between the blocks (the positions of the frames, added before the first
    temporal block, and the reshapes) is left to the model's own forward.
    """

    guided_layout = Layout.UNCOND_FIRST
    usual_guidance = 7.5  # the pipeline's own default
    encoders = ("text_encoder", "tokenizer")
    # Latte calls its blocks with text, mask and timestep in places; all are the same for every token.
    per_image = frozenset({"argument 2", "argument 3", "argument 4"})

    def __init__(self, model: LatteTransformer3DModel) -> None:
        super().__init__(model)
        self._blocks = [
            kind(block)
            for pair in zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)
            for kind, block in zip((LatteBlock, TemporalBlock), pair, strict=True)
        ]

    def listed_blocks(self) -> list[nn.Module]:
        return list(chain(*zip(self.model.transformer_blocks, self.model.temporal_transformer_blocks, strict=True)))

    def spec(self) -> ModelSpec:
        config = self.model.config
        temporal = TemporalShape(layers=config.num_layers, frames=config.video_length)
        return super().spec().model_copy(update={"temporal": temporal})

    @property
    def latent_shape(self) -> tuple[int, ...]:
        channels, *size = super().latent_shape
        return (channels, self.model.config.video_length, *size)

    def encoded(self, pipe: Any, prompts: list[str], negative_prompt: str, video: VideoSize | None) -> Condition:
        """As the pipeline has it for these prompts at once: of one prompt the words that it has, of several all 120
        places, those without a word set to zero.

        Texts are not cleaned of HTML and the like: that would depend on which packages are installed.
        """
        text, negative = pipe.encode_prompt(
            prompts,
            negative_prompt=[negative_prompt] * len(prompts),
            device=self.device,
            clean_caption=False,
        )  # (B, T, C) each
        given = {"encoder_hidden_states": text}, {"encoder_hidden_states": negative}
        return Condition(*given, self.latent_shape)

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        given = self.arguments(args, kwargs)
        latents = given["hidden_states"]
        if latents.dim() != 5:
            raise StepError(f"Latte takes latents (B, C, frames, h, w), got {tuple(latents.shape)}")
        if not given.get("enable_temporal_attentions", True):
            raise StepError(
                "the plan counts on Latte's temporal attention, and this call leaves it out: call the transformer "
                "with enable_temporal_attentions=True, or remove the plan"
            )
        mask = given.get("encoder_attention_mask")
        return Call(latents, given.get("timestep"), given.get("encoder_hidden_states"), mask)
