"""Models to time: published geometries with random weights, the bundled demo, or a pipeline folder of one's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from ditfastattn.models import adapt
from ditfastattn.pipelines import load_pipeline
from ditfastattn.samplers import make_sampler, sampler_spec
from plans import GuidanceSpec, Plan

TRAINING = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
GUIDANCE_SCALE = 4.0
DEMO = "demo"


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
    """A whole guided run of the pipeline, its VAE included; the images stay where they are."""
    classes = pipe.transformer.config.num_embeds_ada_norm
    labels = [(7 * i) % classes for i in range(images)]
    generator = torch.Generator(pipe.device).manual_seed(0)
    pipe(labels, guidance_scale=GUIDANCE_SCALE, generator=generator, num_inference_steps=steps, output_type="pt")


def dit_xl(latent_size: int, patch: int = 2) -> DiTTransformer2DModel:
    """DiT-XL (arXiv 2212.09748, Table 1): 28 layers, 16 heads of 72."""
    return DiTTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        num_layers=28,
        sample_size=latent_size,
        patch_size=patch,
    )


def image_vae() -> AutoencoderKL:
    """The autoencoder of Stable Diffusion, which DiT uses: 8 x 8 pixels to a latent."""
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
}
NAMES = (*TRANSFORMERS, DEMO)


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
        pipe: Any = DiTPipeline(transformer.eval(), vae.eval(), make_sampler("dpm", TRAINING))
        pipe = pipe.to(device=device, dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        return Geometry(name, pipe, random_weights=True)
    pipe = load_pipeline(name, dtype=dtype, device=device)
    pipe.set_progress_bar_config(disable=True)
    return Geometry(name, pipe, random_weights=False)
