"""One file per architecture: where its attention is, how its block runs, how a guided batch is laid out."""

from diffusers import DiTTransformer2DModel
from torch import nn

from ditfastattn.errors import ApplyError
from ditfastattn.models.base import ModelAdapter
from ditfastattn.models.dit import DiT


def adapt(model: nn.Module) -> ModelAdapter:
    """The adapter of a transformer.

    Raises:
        ApplyError: the class is not one we know.
    """
    if isinstance(model, DiTTransformer2DModel):
        return DiT(model)
    raise ApplyError(f"{type(model).__name__} is not supported; this version knows DiTTransformer2DModel")
