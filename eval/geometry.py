"""Models to time: published geometries with random weights, the bundled demos, or a pipeline folder of one's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiTPipeline,
    DiTTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)

from ditfastattn.demo import TRANSFORMERS as DEMOS
from ditfastattn.models import adapt
from ditfastattn.pipelines import load_pipeline
from ditfastattn.samplers import make_sampler, sampler_spec
from plans import GuidanceSpec, Plan

TRAINING = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
GUIDANCE_SCALE = 4.0
DEMO = "demo"
WORDS = 300  # of a prompt, padded
XL: dict[str, Any] = {  # the size that DiT-XL and PixArt-Sigma-XL share
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
}


@dataclass(frozen=True)
class Geometry:
    """What is known of a model whose weights may be random."""

    name: str
    pipe: Any
    random_weights: bool

    def full_plan(self, steps: int) -> Plan:
        adapter = adapt(self.pipe.transformer)
        guidance = GuidanceSpec(scale=GUIDANCE_SCALE, layout=adapter.guided_layout.value)
        return Plan.full(model=adapter.spec(), sampler=sampler_spec(self.pipe.scheduler, steps), guidance=guidance)


def sample(pipe: Any, images: int, steps: int) -> None:
    """A whole guided run of the pipeline, its VAE included but no text encoder; the images stay where they are."""
    given = _prompts(pipe, images) if hasattr(pipe.transformer, "caption_projection") else _labels(pipe, images)
    generator = torch.Generator(pipe.device).manual_seed(0)
    pipe(**given, guidance_scale=GUIDANCE_SCALE, generator=generator, num_inference_steps=steps, output_type="pt")


def _labels(pipe: Any, images: int) -> dict[str, Any]:
    classes = pipe.transformer.config.num_embeds_ada_norm
    return {"class_labels": [(7 * i) % classes for i in range(images)]}


def _prompts(pipe: Any, images: int) -> dict[str, Any]:
    """Random embeddings of prompts of 20 words, and of an empty negative prompt."""
    config, device, dtype = pipe.transformer.config, pipe.device, pipe.transformer.dtype
    generator = torch.Generator(device).manual_seed(0)
    shape = (2, images, WORDS, config.caption_channels)
    prompts, negative = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    place = torch.arange(WORDS, device=device).expand(images, -1)
    return {
        "negative_prompt": None,
        "prompt_embeds": prompts,
        "prompt_attention_mask": (place < 20).long(),
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": (place < 1).long(),
        "use_resolution_binning": False,
    }


def dit_xl(latent_size: int) -> DiTTransformer2DModel:
    """DiT-XL/2 (arXiv 2212.09748, Table 1): 28 layers, 16 heads of 72."""
    return DiTTransformer2DModel(**XL, sample_size=latent_size, patch_size=2)


def pixart_sigma_xl(latent_size: int) -> PixArtTransformer2DModel:
    """PixArt-Sigma-XL/2 (arXiv 2403.04692): 28 layers, 16 heads of 72, prompts of 300 T5 embeddings."""
    return PixArtTransformer2DModel(
        **XL,
        sample_size=latent_size,
        patch_size=2,
        cross_attention_dim=1152,
        caption_channels=4096,
        use_additional_conditions=False,
    )


def image_vae() -> AutoencoderKL:
    """The autoencoder of Stable Diffusion, whose shape DiT and PixArt use: 8 x 8 pixels to a latent."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )


TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "dit-xl-2-256": lambda: dit_xl(32),
    "dit-xl-2-512": lambda: dit_xl(64),
    "pixart-sigma-1k": lambda: pixart_sigma_xl(128),
    "pixart-sigma-2k": lambda: pixart_sigma_xl(256),
}
NAMES = (*TRANSFORMERS, *DEMOS)


def build(name: str, device: str, dtype: torch.dtype, seed: int = 0) -> Geometry:
    """A pipeline on ``device``, in eval mode.

    Raises:
        LoadError: neither a geometry nor a pipeline folder.
    """
    if name in TRANSFORMERS:
        torch.manual_seed(seed)
        with torch.device(device):
            transformer, vae = TRANSFORMERS[name](), image_vae()
        for parameter in transformer.parameters():
            if not parameter.any():  # adaLN-Zero begins as the identity: nothing would depend on attention
                torch.nn.init.normal_(parameter, std=0.02)
        parts: dict[str, Any] = {"transformer": transformer.eval(), "vae": vae.eval()}
        parts["scheduler"] = make_sampler("dpm", TRAINING)
        dit = isinstance(transformer, DiTTransformer2DModel)
        pipe: Any = DiTPipeline(**parts) if dit else PixArtSigmaPipeline(tokenizer=None, text_encoder=None, **parts)
        pipe = pipe.to(device=device, dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        return Geometry(name, pipe, random_weights=True)
    pipe = load_pipeline(name, dtype=dtype, device=device)
    pipe.set_progress_bar_config(disable=True)
    return Geometry(name, pipe, random_weights=False)
