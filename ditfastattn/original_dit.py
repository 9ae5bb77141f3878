"""Checkpoints of facebookresearch/DiT (native parameter names) into diffusers' DiTTransformer2DModel.

Two details keep the outputs equal: the original has LayerNorm eps 1e-6 throughout (diffusers' default for norm3 is
1e-5), and its timestep frequencies are exp(-ln(10000) i / 128), where diffusers' class divides by 127.
"""

import math
import os
import pickle
import re
from collections.abc import Mapping

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from ditfastattn.errors import LoadError

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by width: DiT-S, B, L, XL; a checkpoint does not hold them

_BLOCK_NAMES = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_TOP_NAMES = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_EMBEDDER_NAMES = {  # diffusers keeps a copy of these in every block
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}


def load_original_dit(path: str | os.PathLike[str], heads: int | None = None) -> DiTTransformer2DModel:
    """A DiT from a ``.pt`` file, on the CPU, in float32. Nothing in the file is executed (``weights_only=True``).

    Args:
        heads: attention heads; a checkpoint does not hold them. None: those of the published model of its width.

    Raises:
        LoadError: unreadable, not a DiT checkpoint, or parameters missing or left over.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise LoadError(f"there is no checkpoint at {os.fspath(path)}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        reason = str(error).split(". ")[0].split("\n")[0][:120]
        raise LoadError(f"{os.fspath(path)} is not a readable checkpoint of plain tensors: {reason}") from error
    if isinstance(state, Mapping):  # training checkpoints hold {"model", "ema", "opt", "args"}
        state = state.get("ema", state.get("model", state))
    if not isinstance(state, Mapping) or "x_embedder.proj.weight" not in state:
        raise LoadError(f"{os.fspath(path)} is no facebookresearch/DiT checkpoint: it has no x_embedder.proj.weight")
    try:
        return convert_original_dit(state, heads)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise LoadError(f"{os.fspath(path)} does not hold the parameters of a DiT ({reason})") from error


def convert_original_dit(state: Mapping[str, Tensor], heads: int | None = None) -> DiTTransformer2DModel:
    """A diffusers transformer with the weights of a native state dict; its outputs are those of the original."""
    patches = state["x_embedder.proj.weight"]  # (C, in_channels, patch, patch)
    width, in_channels, patch, _ = patches.shape
    if heads is None and width not in HEADS:
        raise LoadError(
            f"width {width} is none of the published DiTs ({', '.join(map(str, HEADS))}), and a checkpoint does not "
            "say how many heads it has: use ditfastattn.original_dit.load_original_dit(path, heads=...)"
        )
    heads = heads or HEADS[width]
    layers = 1 + max(int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name)))
    tokens = state["pos_embed"].shape[1]
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=in_channels,
        out_channels=state["final_layer.linear.bias"].shape[0] // patch**2,
        num_layers=layers,
        sample_size=math.isqrt(tokens) * patch,
        patch_size=patch,
        num_embeds_ada_norm=state["y_embedder.embedding_table.weight"].shape[0] - 1,
        norm_eps=1e-6,
    ).eval()
    converted = dict(_converted(state, layers))
    result = model.load_state_dict(converted, strict=False)
    missing = [name for name in result.missing_keys if name != "pos_embed.pos_embed"]
    if missing or result.unexpected_keys:
        raise LoadError(
            f"the checkpoint does not fit DiT: missing {missing[:3] or 'nothing'}, left over "
            f"{result.unexpected_keys[:3] or 'nothing'}"
        )
    model.pos_embed.pos_embed = state["pos_embed"].float().clone()
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    model.save_pretrained = _refuse_to_save
    return model


def _refuse_to_save(*_: object, **__: object) -> None:
    raise LoadError(
        "a converted DiT cannot be saved in diffusers' format: its class always reads other timestep frequencies than "
        "the original, so what is loaded again would be another model; keep the .pt file"
    )


def _converted(state: Mapping[str, Tensor], layers: int):  # type: ignore[no-untyped-def]
    """(diffusers name, tensor) pairs."""
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        block = re.match(r"blocks\.(\d+)\.(.+)", stem)
        if block:
            prefix = f"transformer_blocks.{block[1]}"
            if block[2] == "attn.qkv":
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{prefix}.attn1.to_{letter}.{kind}", part
            else:
                yield f"{prefix}.{_BLOCK_NAMES.get(block[2], block[2])}.{kind}", tensor
        elif stem in _EMBEDDER_NAMES:
            for layer in range(layers):
                yield f"transformer_blocks.{layer}.norm1.emb.{_EMBEDDER_NAMES[stem]}.{kind}", tensor
        elif name != "pos_embed":
            yield f"{_TOP_NAMES.get(stem, stem)}.{kind}", tensor
