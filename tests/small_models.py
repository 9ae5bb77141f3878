"""Small models with random weights, large enough to tell a right answer from a wrong one."""

import random
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from ditfastattn.models import adapt
from ditfastattn.samplers import make_sampler, sampler_spec
from ditfastattn.sampling import Denoiser, label_condition
from plans import GuidanceSpec, Method, Plan
from plans.method import PAPER

TRAINING = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def small_transformer(layers: int = 4, seed: int = 0) -> DiTTransformer2DModel:
    """A DiT of 16 tokens, 2 heads of 24, whose every weight matters (adaLN-Zero would begin as the identity)."""
    generator = torch.Generator().manual_seed(seed)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=8, num_layers=layers, sample_size=8
    )
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    return model.eval()


def small_pipeline(layers: int = 4, seed: int = 0, sampler: str = "dpm") -> DiTPipeline:
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    scheduler = make_sampler(sampler, TRAINING)
    pipe = DiTPipeline(transformer=small_transformer(layers, seed), vae=vae.eval(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def full_plan(pipe: Any, steps: int = 8, guidance_scale: float = 4.0) -> Plan:
    adapter = adapt(pipe.transformer)
    layout = adapter.guided_layout.value if guidance_scale != 1 else "none"
    return Plan.full(
        model=adapter.spec(),
        sampler=sampler_spec(pipe.scheduler, steps),
        guidance=GuidanceSpec(scale=guidance_scale, layout=layout),
    )


def random_plan(pipe: Any, steps: int = 8, guidance_scale: float = 4.0, seed: int = 0) -> Plan:
    """A plan that mixes every method that its guidance allows."""
    plan = full_plan(pipe, steps, guidance_scale)
    choose = random.Random(seed)
    methods = [m for m in PAPER if guidance_scale != 1 or not m.shares_guidance]
    rows = [[choose.choice(methods) for _ in range(plan.layers)] for _ in range(plan.steps - 1)]
    return plan.with_methods([[Method.FULL] * plan.layers, *rows])


def sample(pipe: Any, steps: int = 8, labels: tuple[int, ...] = (1, 2), **kwargs: Any) -> torch.Tensor:
    """Latents of the pipeline's own run, as images before the VAE would hide differences in its rounding."""
    generator = torch.Generator().manual_seed(0)
    images = pipe(
        class_labels=list(labels), num_inference_steps=steps, generator=generator, output_type="pt", **kwargs
    ).images
    assert isinstance(images, torch.Tensor)
    return images


def label_denoiser(pipe: Any, labels: tuple[int, ...], guidance_scale: float) -> Denoiser:
    return Denoiser(pipe.transformer, label_condition(pipe.transformer, labels), guidance_scale)


def everything(pipe: DiTPipeline) -> list[dict[str, Any]]:
    """Every attribute of every module and of the scheduler."""
    return [dict(owner.__dict__) for owner in (*pipe.transformer.modules(), pipe.scheduler)]


def same(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    """Equal keys in equal order, and the very same objects behind them, but for what the sampler itself moves."""
    moving = ("_step_index", "timesteps", "sigmas", "model_outputs", "lower_order_nums", "num_inference_steps")
    return all(
        list(a) == list(b) and all(a[k] is b[k] for k in a if k not in moving)
        for a, b in zip(before, after, strict=True)
    )
