"""Models to time: published geometries with random weights, the bundled demos, or a pipeline folder of one's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiTPipeline,
    DiTTransformer2DModel,
    LattePipeline,
    LatteTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)

from ditfastattn.condition import Condition
from ditfastattn.models import adapt
from ditfastattn.models.opensora import OpenSora
from ditfastattn.models.pixart import PixArt
from ditfastattn.opensora import OpenSoraPipeline, STDiT2
from ditfastattn.pipelines import load_pipeline
from ditfastattn.samplers import make_sampler, sampler_spec
from ditfastattn.sampling import label_condition
from plans import GuidanceSpec, Plan

TRAINING = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
GUIDANCE_SCALE = 4.0
WORDS = 300  # of an image's prompt, padded
VIDEO_WORDS = 120  # of Latte's
FRAMES = 16
XL: dict[str, Any] = {  # the size that DiT-XL and PixArt-Sigma-XL share
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
}


@dataclass(frozen=True)
class Geometry:
    """What is known of a model whose weights may be random.

    Args:
        size: what its pipeline is told of the video's size; nothing where the transformer knows it.
    """

    name: str
    pipe: Any
    random_weights: bool
    size: Mapping[str, int] = field(default_factory=dict)

    def full_plan(self, steps: int) -> Plan:
        adapter = adapt(self.pipe.transformer)
        spec = adapter.spec()
        if isinstance(adapter, OpenSora):
            height, width = (self.size[side] // self.pipe.vae_scale_factor for side in ("height", "width"))
            spec = adapter.spec_of(self.size["num_frames"], height, width)
        guidance = GuidanceSpec(scale=GUIDANCE_SCALE, layout=adapter.guided_layout.value)
        return Plan.full(model=spec, sampler=sampler_spec(self.pipe.scheduler, steps), guidance=guidance)

    def sample(self, images: int, steps: int) -> None:
        """:func:`sample`, at this size."""
        sample(self.pipe, images, steps, **self.size)


def sample(pipe: Any, images: int, steps: int, **size: int) -> None:
    """A whole guided run of the pipeline without text encoder; images are decoded by the VAE and stay where they are,
    videos stay latents."""
    if isinstance(pipe, OpenSoraPipeline):
        given = _open_sora_prompts(pipe, images)
    elif isinstance(pipe, LattePipeline):
        given = _video_prompts(pipe, images)
    elif hasattr(pipe.transformer, "caption_projection"):
        given = _prompts(pipe, images)
    else:
        given = _labels(pipe, images)
    pipe(
        **given,
        **size,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator(pipe.device).manual_seed(0),
        num_inference_steps=steps,
        output_type="latent" if isinstance(pipe, LattePipeline | OpenSoraPipeline) else "pt",
    )


def condition(pipe: Any, images: int) -> Condition:
    """What :func:`sample` tells the transformer of images, for a sampling loop of one's own."""
    adapter = adapt(pipe.transformer)
    if not isinstance(adapter, PixArt):
        return label_condition(pipe.transformer, _labels(pipe, images)["class_labels"])
    given = _prompts(pipe, images)
    cond, uncond = (
        {
            "encoder_hidden_states": given[f"{prefix}prompt_embeds"],
            "encoder_attention_mask": given[f"{prefix}prompt_attention_mask"],
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
        for prefix in ("", "negative_")
    )
    return Condition(cond, uncond, adapter.latent_shape)


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


def _video_prompts(pipe: Any, videos: int) -> dict[str, Any]:
    """Random embeddings of prompts and of negative prompts, of VIDEO_WORDS words."""
    config, device, dtype = pipe.transformer.config, pipe.device, pipe.transformer.dtype
    generator = torch.Generator(device).manual_seed(0)
    shape = (2, videos, VIDEO_WORDS, config.caption_channels)
    prompts, negative = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    return {"negative_prompt": None, "prompt_embeds": prompts, "negative_prompt_embeds": negative}


def _open_sora_prompts(pipe: Any, videos: int) -> dict[str, Any]:
    """Random embeddings of prompts of 20 words; the model has the unconditional branch's itself."""
    config, device, dtype = pipe.transformer.config, pipe.device, pipe.transformer.dtype
    generator = torch.Generator(device).manual_seed(0)
    shape = (videos, 1, config.model_max_length, config.caption_channels)
    place = torch.arange(config.model_max_length, device=device).expand(videos, -1)
    return {
        "prompt_embeds": torch.randn(shape, generator=generator, device=device, dtype=dtype),
        "prompt_mask": (place < 20).long(),
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


def latte_1(latent_size: int) -> LatteTransformer3DModel:
    """Latte-1 (arXiv 2401.03048; maxin-cn/Latte-1): 28 spatial and 28 temporal blocks, 16 heads of 72."""
    return LatteTransformer3DModel(
        **XL,
        sample_size=latent_size,
        patch_size=2,
        video_length=FRAMES,
        cross_attention_dim=1152,
        caption_channels=4096,
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
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
    "latte-1-16x512": lambda: latte_1(64),
    "open-sora-1.1-16x240p": STDiT2,
    "open-sora-1.1-16x480p": STDiT2,
}
SIZES = {"open-sora-1.1-16x240p": (240, 426), "open-sora-1.1-16x480p": (480, 854)}  # pixels, height and width


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
        pipe = _pipeline(transformer.eval(), vae.eval()).to(device=device, dtype=dtype)
    else:
        pipe = load_pipeline(name, dtype=dtype, device=device)
    pipe.set_progress_bar_config(disable=True)
    return Geometry(name, pipe, random_weights=name in TRANSFORMERS, size=_size(name, pipe))


def _size(name: str, pipe: Any) -> dict[str, int]:
    """What a video pipeline is told of the size; Open-Sora's is the published one where the name says no other."""
    if isinstance(pipe, LattePipeline):
        config = pipe.transformer.config
        side = config.sample_size * pipe.vae_scale_factor
        return {"video_length": config.video_length, "height": side, "width": side}
    if isinstance(pipe, OpenSoraPipeline):
        height, width = SIZES.get(name, SIZES["open-sora-1.1-16x240p"])
        return {"num_frames": FRAMES, "height": height, "width": width}
    return {}


def _pipeline(transformer: Any, vae: AutoencoderKL) -> Any:
    parts = {"transformer": transformer, "vae": vae, "scheduler": make_sampler("dpm", TRAINING)}
    if isinstance(transformer, DiTTransformer2DModel):
        return DiTPipeline(**parts)
    kinds = {PixArtTransformer2DModel: PixArtSigmaPipeline, LatteTransformer3DModel: LattePipeline}
    return kinds.get(type(transformer), OpenSoraPipeline)(tokenizer=None, text_encoder=None, **parts)
