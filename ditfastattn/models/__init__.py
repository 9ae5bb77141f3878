"""One file per architecture: where its attention is, how its block runs, how a guided batch is laid out."""

from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import nn

from ditfastattn.models.base import ModelAdapter
from ditfastattn.models.dit import DiT
from ditfastattn.models.native_dit import NativeDiT, missing_parts
from ditfastattn.models.pixart import PixArt
from ditfastattn.models.registry import Family, Registry

REGISTRY = Registry(
    [
        Family("DiTTransformer2DModel", DiT, DiTTransformer2DModel, None, "DiTPipeline", "on labels"),
        Family("PixArtTransformer2DModel", PixArt, PixArtTransformer2DModel, None, "PixArtAlpha-, PixArtSigmaPipeline"),
        Family("facebookresearch/DiT", NativeDiT, None, missing_parts, "its own sample.py", "of its .pt checkpoint"),
    ]
)


def adapt(model: nn.Module) -> ModelAdapter:
    """The adapter of a transformer.

    Raises:
        ApplyError: the class is not one we know; says what is missing.
    """
    return REGISTRY.find(model).adapter(model)
