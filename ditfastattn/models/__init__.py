"""One file per architecture: where its attention is, how its block runs, how a guided batch is laid out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from diffusers import DiTTransformer2DModel, LatteTransformer3DModel, PixArtTransformer2DModel
from torch import Tensor, nn

from ditfastattn.errors import ApplyError
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.models.described import DescribedModel, Description
from ditfastattn.models.dit import DiT
from ditfastattn.models.latte import Latte
from ditfastattn.models.native_dit import NativeDiT, missing_parts
from ditfastattn.models.opensora import OpenSora
from ditfastattn.models.pixart import PixArt
from ditfastattn.models.registry import Family, Registry
from ditfastattn.opensora.stdit2 import STDiT2
from plans import ModelSpec

REGISTRY = Registry(
    [
        Family(
            "`DiTTransformer2DModel`", DiT, DiTTransformer2DModel, loaded_by="`DiTPipeline`", calibration="on labels"
        ),
        Family(
            "`PixArtTransformer2DModel`",
            PixArt,
            PixArtTransformer2DModel,
            loaded_by="`PixArtAlphaPipeline`, `PixArtSigmaPipeline`",
            calibration="on prompts",
        ),
        Family(
            "`LatteTransformer3DModel`",
            Latte,
            LatteTransformer3DModel,
            loaded_by="`LattePipeline`",
            calibration="on prompts",
        ),
        Family(
            "Open-Sora 1.1's `STDiT2`",
            OpenSora,
            STDiT2,
            loaded_by="`ditfastattn.load_pipeline`",
            calibration="on prompts",
        ),
        Family(
            "facebookresearch/DiT", NativeDiT, None, missing_parts, "its own `sample.py`", "of its `.pt` checkpoint"
        ),
    ]
)


def adapt(model: nn.Module) -> ModelAdapter:
    """The adapter of a transformer.

    Raises:
        ApplyError: the class is not one we know; says what is missing.
    """
    return REGISTRY.find(model).adapter(model)


def register(
    transformer: type[nn.Module],
    *,
    attentions: Callable[[Any], Sequence[nn.Module]],
    qkv: Callable[..., Sequence[Tensor]],
    project: Callable[[Any, Tensor], Tensor],
    call: Callable[..., Call],
    shape: Callable[[Any], Mapping[str, int]],
    guided: Literal["none", "cond_first", "uncond_first"] = "none",
    unconditional: Callable[[Tensor], Tensor] | None = None,
    predict: Callable[..., Any] | None = None,
) -> None:
    """Makes :func:`ditfastattn.apply` know one's own transformer, for this process.

    Only self-attention is taken over: the blocks around it run as they are, in eager mode, in raster order. What
    ``qkv`` and ``project`` give is compared with what each attention's own forward gives, at its first call in a
    session and at every first one with other arguments (a mask that was None, another shape); nothing else is known of
    the module, so nothing else is guessed.

    Args:
        transformer: the class; its subclasses follow, and another call for the same class takes this one's place.
        attentions: model -> its self-attention modules, one a layer, in the order in which they run. Each is called
            once a step, with hidden states (B, N, C) first, and returns (B, N, C); whatever else it is given must not
            depend on the row of the batch.
        qkv: (attention, x, *the rest of its arguments) -> queries, keys and values, (rows, N, H, D) each, for
            x (rows, N, C), which is the whole batch or its conditional half. Norms and rotary embeddings of q and k
            included. A plan's core is softmax(q k^T / sqrt(D)) v.
        project: (attention, heads (rows, N, H, D)) -> (rows, N, C): the out-projection.
        call: given the arguments of the model's forward, says which is which: ``Call(latents, timestep, condition)``.
        shape: model -> {"tokens", "heads", "head_dim", "in_channels", "out_channels"}.
        guided: which half of a guided batch comes first; "none" for a model that is never guided in one batch.
        unconditional: condition (B, ...) -> (B,) bool, which rows are of the unconditional branch. Without it only
            ``apply(..., scheduler=...)`` can see that the branches come in another order than ``guided`` says.
        predict: (model, latents, timestep (rows,), **condition) -> what the model's forward returns, from one call of
            the model on all rows; only calibration calls it, on latents and timesteps as the sampler has them. ``call``
            must find that timestep again. None: ``model(latents, timestep, **condition)``.

    Raises:
        ApplyError: no class of modules, or one that is built in, or no such layout.
    """
    if not isinstance(transformer, type) or not issubclass(transformer, nn.Module):
        raise ApplyError(f"register() takes a class of modules, not {transformer!r}")
    layouts = [layout.value for layout in Layout]
    if guided not in layouts:
        raise ApplyError(f"guided= is one of {', '.join(layouts)}, not {guided!r}")
    description = Description(
        attentions, qkv, project, call, shape, Layout(guided), unconditional, predict or _as_it_is
    )
    REGISTRY.add(transformer, partial(DescribedModel, description))


def _as_it_is(model: nn.Module, latents: Tensor, timestep: Tensor, **condition: Any) -> Any:
    return model(latents, timestep, **condition)


def model_spec(model: nn.Module) -> ModelSpec:
    """Class and shape of a supported transformer, as a plan records them.

    Raises:
        ApplyError: the class is not one we know; says what is missing.
    """
    return adapt(model).spec()
