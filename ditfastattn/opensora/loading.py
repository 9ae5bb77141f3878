"""The whole Open-Sora 1.1 pipeline: its checkpoints hold the transformer alone."""

import os
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from transformers import AutoTokenizer, T5EncoderModel

from ditfastattn.errors import LoadError
from ditfastattn.opensora.checkpoint import load_stdit2
from ditfastattn.opensora.pipeline import OpenSoraPipeline

# As in configs/opensora-v1-1/inference/sample.py of hpcaitech/Open-Sora.
VAE = "stabilityai/sd-vae-ft-ema"
TEXT_ENCODER = "DeepFloyd/t5-v1_1-xxl"


def load_opensora_pipeline(
    source: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    vae: str | os.PathLike[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
) -> OpenSoraPipeline:
    """A pipeline around the transformer of :func:`load_stdit2`, on the CPU, with the noise schedule of its training.

    Args:
        source: as for ``load_stdit2``.
        dtype: of transformer and VAE. The text encoder stays in float32: T5 overflows in float16, and Open-Sora runs
            it so.
        vae: a folder or hub id with an AutoencoderKL (default: stabilityai/sd-vae-ft-ema).
        text_encoder: a folder or hub id with a T5 encoder and its tokenizer (default: DeepFloyd/t5-v1_1-xxl).

    Raises:
        LoadError: one of the parts cannot be loaded.
    """
    transformer = load_stdit2(source, dtype)
    encoder = text_encoder or TEXT_ENCODER
    return OpenSoraPipeline(
        tokenizer=_part(AutoTokenizer, "tokenizer", "text_encoder=", encoder),
        text_encoder=_part(T5EncoderModel, "text encoder", "text_encoder=", encoder, dtype=torch.float32),
        vae=_part(AutoencoderKL, "VAE", "vae=", vae or VAE, dtype=dtype),
        transformer=transformer,
        scheduler=DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000),
    )


def _part(cls: Any, name: str, argument: str, source: str | os.PathLike[str], **options: Any) -> Any:
    try:
        return cls.from_pretrained(os.fspath(source), **options)
    except Exception as error:  # the hub client, transformers and diffusers raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise LoadError(
            f"Open-Sora's checkpoint holds the transformer only, and its {name} {os.fspath(source)!r} cannot be "
            f"loaded; give {argument} a folder that has one ({type(error).__name__}: {reason})"
        ) from error
