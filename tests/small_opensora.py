"""A small Open-Sora with random weights: transformer, and a pipeline with a T5 that reads a few words."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from small_models import TRAINING
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ditfastattn.opensora import OpenSoraPipeline, STDiT2
from ditfastattn.samplers import make_sampler

WORDS, WIDTH = 5, 20  # of a prompt
VOCABULARY = ["<pad>", "</s>", "<unk>", "a", "boat", "on", "the", "sea", "cat"]


def small_stdit2(seed: int = 0, **config: Any) -> STDiT2:
    """Width 48, 3 heads of 16, 2 blocks; every weight matters."""
    generator = torch.Generator().manual_seed(seed)
    settings = {"hidden_size": 48, "num_heads": 3, "depth": 2, "caption_channels": WIDTH, "model_max_length": WORDS}
    model = STDiT2(**(settings | config))
    for name, tensor in model.state_dict().items():
        if name != "rope.freqs":
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.15)
    return model.eval()


def sizes(rows: int = 1, frames: int = 4, height: int = 48, width: int = 64) -> dict[str, Tensor]:
    """What the model is told of a video, for some rows."""
    told = {"num_frames": frames, "height": height, "width": width, "ar": height / width, "fps": 24}
    return {name: torch.full((rows,), float(value)) for name, value in told.items()}


def small_vae() -> AutoencoderKL:
    """Two pixels a latent."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()


def small_t5() -> tuple[PreTrainedTokenizerFast, T5EncoderModel]:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(VOCABULARY), d_model=WIDTH, d_kv=10, d_ff=24, num_layers=1, num_heads=2)
    return tokenizer, T5EncoderModel(config).eval()


def small_opensora(sampler: str = "iddpm", text: bool = True, **config: Any) -> OpenSoraPipeline:
    tokenizer, encoder = small_t5() if text else (None, None)
    pipe = OpenSoraPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=small_vae(),
        transformer=small_stdit2(**config),
        scheduler=make_sampler(sampler, TRAINING),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(videos: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Embeddings (B, 1, L, C) and masks (B, L)."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(videos, 1, WORDS, WIDTH, generator=generator)
    shown = torch.arange(videos)[:, None] % WORDS + 1
    return {"prompt_embeds": embeds, "prompt_mask": (torch.arange(WORDS) < shown).long()}


def sample_opensora(pipe: Any, steps: int = 4, guidance_scale: float = 7.0, videos: int = 2, **kwargs: Any) -> Tensor:
    """Latents (B, C, 4, 6, 8) of the pipeline's own run."""
    given: dict[str, Any] = {"num_frames": 4, "height": 12, "width": 16, "output_type": "latent"} | prompts(videos)
    given["generator"] = torch.Generator().manual_seed(0)
    frames: Tensor = pipe(num_inference_steps=steps, guidance_scale=guidance_scale, **(given | kwargs)).frames
    return frames
