"""A pipeline from the bundled demos, a folder, a hub id or an original DiT checkpoint."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LattePipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
)
from diffusers.utils import logging

from ditfastattn.demo import TRANSFORMERS, pipeline_path, transformer_path
from ditfastattn.errors import LoadError
from ditfastattn.opensora.checkpoint import PUBLISHED, is_stdit2
from ditfastattn.opensora.loading import load_opensora_pipeline
from ditfastattn.opensora.pipeline import OpenSoraPipeline
from ditfastattn.original_dit import load_original_dit
from ditfastattn.samplers import make_sampler
from ditfastattn.schedules import USUAL_STEPS

# The VAE that the official DiT samples were made with.
ORIGINAL_VAE = "stabilityai/sd-vae-ft-mse"
_CLASSES: tuple[Any, ...] = (DiTPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline, LattePipeline, OpenSoraPipeline)
PIPELINES: dict[str, Any] = {cls.__name__: cls for cls in _CLASSES}
HUB_IDS = {"opensora": PUBLISHED[1]}  # short names
OPENSORA_STEPS = 200  # of iddpm, as its authors sample it


def usual_schedule(source: str | os.PathLike[str], sampler: str | None = None) -> tuple[str, int]:
    """The sampler that :func:`load_pipeline` takes if None is asked for, or ``sampler``, and its usual steps."""
    name = os.fspath(source)
    opensora = name in HUB_IDS or is_stdit2(name) or _is_opensora_folder(name)
    sampler = sampler or ("iddpm" if opensora else "dpm")
    return sampler, OPENSORA_STEPS if opensora and sampler == "iddpm" else USUAL_STEPS[sampler]


def load_pipeline(
    source: str | os.PathLike[str] = "demo",
    *,
    sampler: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    vae: str | os.PathLike[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
) -> Any:
    """A diffusers pipeline (DiT, PixArt-alpha, PixArt-Sigma, Latte) or Open-Sora's, with a sampler chosen by name.

    Args:
        source: "demo", "demo-long" (1,024 tokens, where the first has 256), a folder in diffusers' format, a hub id
            such as "facebook/DiT-XL-2-512" or "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", a ``.pt`` checkpoint of
            facebookresearch/DiT, or Open-Sora 1.1: "opensora" for "hpcai-tech/OpenSora-STDiT-v2-stage3", or a folder
            with its ``config.json`` and weights.
        sampler: "dpm" (DPM-Solver++ 2M), "ddim", "ddpm", "iddpm" or "heun". None: "iddpm" for Open-Sora, else "dpm".
        dtype: the parameters' dtype; None keeps float32.
        device: where the pipeline is moved.
        vae: for checkpoints that hold none, a folder or hub id (default for DiT's ``.pt``: stabilityai/sd-vae-ft-mse,
            for Open-Sora: stabilityai/sd-vae-ft-ema).
        text_encoder: for Open-Sora, a folder or hub id of a T5 encoder with its tokenizer (default:
            DeepFloyd/t5-v1_1-xxl).

    Raises:
        LoadError: nothing loadable there; one sentence says what was tried.
    """
    dtype = dtype or torch.float32
    name = os.fspath(source)
    transformer = None
    if name in TRANSFORMERS:
        try:
            name, transformer = os.fspath(pipeline_path()), transformer_path(name)
        except FileNotFoundError as error:
            raise LoadError(str(error)) from error
    default, _ = usual_schedule(name)
    name = HUB_IDS.get(name, name)
    opensora = is_stdit2(name)
    if vae is not None and not opensora and not name.endswith((".pt", ".pth")):
        raise LoadError(f"vae= goes with a checkpoint that holds none; {name!r} brings a VAE of its own")
    if text_encoder is not None and not opensora:
        raise LoadError(f"text_encoder= goes with Open-Sora's checkpoints, and {name!r} is none")
    if opensora:
        pipe = load_opensora_pipeline(name, dtype, vae, text_encoder)
    elif name.endswith((".pt", ".pth")):
        pipe = _original_pipeline(name, vae or ORIGINAL_VAE, dtype)
    else:
        pipe = _diffusers_pipeline(name, dtype, transformer)
    pipe.scheduler = make_sampler(sampler or default, pipe.scheduler.config)
    pipe.set_progress_bar_config(leave=False)
    return pipe.to(device)


def _diffusers_pipeline(name: str, dtype: torch.dtype, transformer: Path | None = None) -> Any:
    """The pipeline of a folder or hub id; with the transformer of another folder, where one is given."""
    local = Path(name)
    if not local.exists() and name.startswith((".", "/", "~")):
        raise LoadError(f"{name} does not exist; name a folder in diffusers' format, a hub id or a .pt checkpoint")
    if not local.exists() and "/" not in name:  # the hub would be asked for a minute
        raise LoadError(
            f"{name!r} is neither a folder here nor a hub id, which is OWNER/NAME; models known by name are "
            f"{', '.join([*TRANSFORMERS, *HUB_IDS])}"
        )
    if local.exists() and not (local / "model_index.json").exists():
        raise LoadError(f"{name} holds no model_index.json, so it is not a pipeline folder in diffusers' format")
    try:
        with _quiet_diffusers():
            # The class is looked up here, not imported by name: a folder may name code of its own.
            cls = _pipeline_class(name, DiTPipeline.load_config(name, local_files_only=local.exists()))
            parts = {} if transformer is None else {"transformer": _dit(transformer, dtype)}
            wide = {"default": dtype, "text_encoder": torch.float32}  # Open-Sora's T5, as in load_opensora_pipeline
            given = wide if cls is OpenSoraPipeline else dtype
            pipe = cls.from_pretrained(name, dtype=given, local_files_only=local.exists(), **parts)
    except LoadError:
        raise
    except Exception as error:  # diffusers, the hub client and safetensors raise many kinds
        reason = " ".join(str(error).split())[:300]
        kind = "folder" if local.exists() else "hub id (is there a network, and does the name exist?)"
        raise LoadError(f"cannot load {name!r} as a pipeline {kind}: {type(error).__name__}: {reason}") from error
    return pipe


def _dit(folder: Path, dtype: torch.dtype) -> DiTTransformer2DModel:
    return DiTTransformer2DModel.from_pretrained(folder, dtype=dtype, local_files_only=True)


def _pipeline_class(name: str, index: Any) -> Any:
    """The class that a ``model_index.json`` names."""
    given = index.get("_class_name") if isinstance(index, dict) else None
    cls = PIPELINES.get(given) if isinstance(given, str) else None
    if cls is None:
        raise LoadError(f"{name!r} is a pipeline of class {given!r}; this version loads {', '.join(PIPELINES)}")
    return cls


def _is_opensora_folder(name: str) -> bool:
    try:
        index = json.loads((Path(name) / "model_index.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and index.get("_class_name") == OpenSoraPipeline.__name__


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without the bar over three components, and the warning that diffusers gives at every DiT's id2label."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _original_pipeline(path: str, vae: str | os.PathLike[str], dtype: torch.dtype) -> DiTPipeline:
    transformer = load_original_dit(path).to(dtype)
    try:
        autoencoder = AutoencoderKL.from_pretrained(os.fspath(vae), dtype=dtype)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise LoadError(
            f"{path} holds the transformer only, and its VAE {os.fspath(vae)!r} cannot be loaded; give vae= a folder "
            f"with an AutoencoderKL ({type(error).__name__}: {reason})"
        ) from error
    training = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000)
    return DiTPipeline(transformer=transformer, vae=autoencoder, scheduler=training)
