"""A small Latte with random weights, and its pipeline without a text encoder: prompts come as embeddings."""

from typing import Any

import torch
from diffusers import AutoencoderKL, LattePipeline, LatteTransformer3DModel
from small_models import TRAINING, full_plan
from small_pixart import prompts, small_text_parts

from ditfastattn.samplers import make_sampler
from plans import Method, Plan, Window
from plans.method import PAPER

FRAMES, TOKENS = 4, 16
WORDS, WIDTH = 5, 20  # of a prompt embedding


def small_latte(layers: int = 2, seed: int = 0, **config: Any) -> LatteTransformer3DModel:
    """4 frames of 16 tokens, 2 heads of 24; every weight matters."""
    generator = torch.Generator().manual_seed(seed)
    settings = {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6} | config
    model = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        cross_attention_dim=48,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        caption_channels=WIDTH,
        video_length=FRAMES,
        **settings,
    )
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    return model.eval()


def small_latte_pipeline(sampler: str = "dpm", **config: Any) -> LattePipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    pipe = LattePipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        transformer=small_latte(**config),
        scheduler=make_sampler(sampler, TRAINING),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small_text_to_video() -> LattePipeline:
    """The same pipeline with a text encoder."""
    pipe = small_latte_pipeline()
    tokenizer, encoder = small_text_parts()
    pipe.register_modules(tokenizer=tokenizer, text_encoder=encoder)
    return pipe


def sample_latte(pipe: Any, steps: int = 6, guidance_scale: float = 4.0, videos: int = 2, **kwargs: Any) -> Any:
    """Latents (B, C, T, h, w) of the pipeline's own run."""
    given = {name: value for name, value in prompts(videos).items() if name.endswith("embeds")} | kwargs
    return pipe(
        **{"video_length": FRAMES, "output_type": "latent"} | given,
        negative_prompt=None,
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0),
    ).frames


def video_plan(pipe: Any, steps: int = 6, guidance_scale: float = 4.0, seed: int = 0) -> Plan:
    """A plan that mixes every method that its guidance allows at both sites, whose windows differ."""
    choose = torch.Generator().manual_seed(seed)
    plan = full_plan(pipe, steps, guidance_scale)
    plan = Plan.full(
        model=plan.model,
        sampler=plan.sampler,
        guidance=plan.guidance,
        window=Window(left=3, right=1),
        temporal_window=Window(left=0, right=1),
    )
    methods = [m for m in PAPER if guidance_scale != 1 or not m.shares_guidance]
    for site in plan.sites:
        layers = plan.model.shape(site).layers
        picked = torch.randint(len(methods), (steps - 1, layers), generator=choose).tolist()
        grid = [[Method.FULL] * layers, *[[methods[i] for i in row] for row in picked]]
        plan = plan.with_methods(grid, site=site)
    return plan
