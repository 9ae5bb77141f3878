"""One file per architecture: where its attention is, how its block runs, how a guided batch is laid out."""

from collections.abc import Callable
from typing import Any

from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import nn

from ditfastattn.errors import ApplyError
from ditfastattn.models.base import ModelAdapter
from ditfastattn.models.dit import DiT
from ditfastattn.models.pixart import PixArt

ADAPTERS: dict[type, Callable[[Any], ModelAdapter]] = {DiTTransformer2DModel: DiT, PixArtTransformer2DModel: PixArt}


def adapt(model: nn.Module) -> ModelAdapter:
    """The adapter of a transformer.

    Raises:
        ApplyError: the class is not one we know.
    """
    for known, adapter in ADAPTERS.items():
        if isinstance(model, known):
            return adapter(model)
    names = ", ".join(known.__name__ for known in ADAPTERS)
    raise ApplyError(f"{type(model).__name__} is not supported; this version knows {names}")
