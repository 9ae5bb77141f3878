"""A small Open-Sora: STDiT2 at 64 px, the demo's autoencoder, and a T5 that knows the words of the captions."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ditfastattn.demo.clips import CAPTIONS, SIZE
from ditfastattn.demo.export import build_scheduler
from ditfastattn.demo.model import xavier
from ditfastattn.opensora import OpenSoraPipeline, STDiT2
from ditfastattn.samplers import make_sampler

WORDS = 8  # of a prompt, the end of it counted
TEXT_WIDTH = 64
PROMPTS = "prompts.txt"  # in an exported folder: every caption, one a line


def build_tokenizer(captions: Sequence[str] = CAPTIONS) -> PreTrainedTokenizerFast:
    """One token a word; the vocabulary is that of the captions."""
    words = sorted({word for text in captions for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=WORDS,
    )


def build_text_encoder(vocabulary: int, width: int = TEXT_WIDTH) -> T5EncoderModel:
    """One layer at its random initial weights, which stay as they are: each word is told apart, and the transformer's
    own layers over the words learn what it means. The weights are float16 numbers, as they are exported."""
    config = T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=16, d_ff=2 * width, num_layers=1, num_heads=4, dropout_rate=0.0
    )
    return T5EncoderModel(config).half().float().eval().requires_grad_(False)


def build_stdit2(width: int, depth: int, heads: int, mlp_ratio: float = 4.0, text_width: int = TEXT_WIDTH) -> STDiT2:
    """Of latents (4, T, 32, 32): 256 tokens a frame. Without norms of queries and keys, for DiT has none."""
    model = STDiT2(
        input_sq_size=SIZE,
        hidden_size=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
        caption_channels=text_width,
        model_max_length=WORDS,
        qk_norm=False,
    )
    initialise(model)
    return model.eval()


@torch.no_grad()
def initialise(model: Any) -> None:
    """As Open-Sora 1.1 begins: Xavier for linear layers, N(0, 0.02) for what embeds numbers and words and for what
    modulates, zero for what temporal and cross-attention add and for the last layer, so that the output is zero."""
    xavier(model, model.x_embedder.proj)
    numbers = (model.t_embedder, model.csize_embedder, model.ar_embedder, model.fl_embedder, model.fps_embedder)
    for part in (*numbers, model.t_block, model.t_block_temp, model.y_embedder.y_proj):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
    for block in model.blocks:
        nn.init.zeros_(block.attn_temp.proj.weight)
        nn.init.zeros_(block.cross_attn.proj.weight)
    nn.init.zeros_(model.final_layer.linear.weight)
    # Here the text is of unit size, Open-Sora's T5 speaks more softly; words of N(0, 0.02) would be heard late.
    for layer in (model.y_embedder.y_proj.fc1, model.y_embedder.y_proj.fc2):
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))


def build_pipeline(
    transformer: STDiT2, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, encoder: T5EncoderModel
) -> OpenSoraPipeline:
    """With the sampler of Open-Sora, IDDPM."""
    return OpenSoraPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=make_sampler("iddpm", build_scheduler().config),
    )


def export(folder: Path, pipe: OpenSoraPipeline) -> int:
    """Write the pipeline in float16, with the captions it knows, and return the size of all in bytes. ``pipe`` is left
    as it is."""
    parts: tuple[Any, ...] = (pipe.transformer, pipe.vae, pipe.text_encoder)
    halves = [copy.deepcopy(part).to("cpu", torch.float16) for part in parts]
    transformer, vae, encoder = halves
    build_pipeline(transformer, vae, pipe.tokenizer, encoder).save_pretrained(folder, safe_serialization=True)
    (folder / PROMPTS).write_text("\n".join(CAPTIONS) + "\n")
    for config in folder.rglob("config.json"):
        # The path a module was loaded from says nothing to a user.
        entries = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(entries, indent=2) + "\n")
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
