"""A small PixArt with random weights, and its pipeline without a text encoder: prompts come as embeddings."""

import string
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from small_models import TRAINING
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ditfastattn.samplers import make_sampler

WORDS, WIDTH = 5, 20  # of a prompt embedding


def small_pixart(layers: int = 4, seed: int = 0, **config: Any) -> PixArtTransformer2DModel:
    """16 tokens, 2 heads of 24; every weight matters."""
    generator = torch.Generator().manual_seed(seed)
    settings = {"sample_size": 8, "cross_attention_dim": 48, "caption_channels": WIDTH} | config
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=8, num_layers=layers, **settings
    )
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    return model.eval()


def small_pixart_pipeline(sigma: bool = True, sampler: str = "dpm", **config: Any) -> Any:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    cls = PixArtSigmaPipeline if sigma else PixArtAlphaPipeline
    pipe = cls(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        transformer=small_pixart(**config),
        scheduler=make_sampler(sampler, TRAINING),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small_text_parts() -> tuple[T5Tokenizer, T5EncoderModel]:
    """Letters are the words of the tokenizer; two layers of T5 make embeddings as wide as the model takes."""
    letters = [(letter, -2.0) for letter in ("▁", *string.ascii_lowercase)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    encoder = T5EncoderModel(T5Config(vocab_size=len(vocabulary), **sizes))
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return tokenizer, encoder.eval()


def small_text_to_image(sigma: bool = True, **config: Any) -> Any:
    """The same pipeline with a text encoder."""
    pipe = small_pixart_pipeline(sigma, **config)
    tokenizer, encoder = small_text_parts()
    pipe.register_modules(tokenizer=tokenizer, text_encoder=encoder)
    return pipe


def prompts(images: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Embeddings (B, T, C) and masks (B, T) of prompts and, another for each image, negative prompts."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(2, images, WORDS, WIDTH, generator=generator)
    lengths = torch.tensor([[WORDS, 3], [2, WORDS]]).repeat(1, images)[:, :images]
    masks = (torch.arange(WORDS) < lengths[..., None]).long()
    return {
        "prompt_embeds": embeds[0],
        "prompt_attention_mask": masks[0],
        "negative_prompt_embeds": embeds[1],
        "negative_prompt_attention_mask": masks[1],
    }


def sample_pixart(pipe: Any, steps: int = 8, guidance_scale: float = 4.0, images: int = 2, **kwargs: Any) -> Any:
    """Latents (B, C, h, w) of the pipeline's own run."""
    given = prompts(images) | kwargs
    return pipe(
        **given,
        negative_prompt=None,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        use_resolution_binning=False,
    ).images
