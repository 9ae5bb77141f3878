"""The transformer that a plan was made for: where its attentions and its MLPs are, and how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, overload

from pydantic import SerializerFunctionWrapHandler, model_serializer

from plans.fields import Count, Frozen, Name

# Attention between the tokens of an image or frame; attention between frames, place by place; cross-attention over the
# words of a prompt, and the MLPs, whose outputs are those before they are gated and added; the whole model's output,
# where a step can be skipped.
SiteName = Literal["attn", "temporal", "cross", "mlp", "model"]
SITES: tuple[SiteName, ...] = get_args(SiteName)
ATTENTION_SITES: tuple[SiteName, ...] = ("attn", "temporal")
# A plan may leave these out, whatever the model has: all of it is then computed in every step that is not skipped. The
# spec of a plan that has one says how large it is, in the field of the site's name.
OPTIONAL_SITES: tuple[SiteName, ...] = ("cross", "mlp")
MLP_RATIO = 4  # hidden channels of an MLP for one of the model's, in DiT, PixArt, Latte and Open-Sora
# Of the models with one cross-attention for each layer of ``attn``: the words of a prompt as their pipelines pad it.
USUAL_WORDS = {"PixArtTransformer2DModel": 300, "LatteTransformer3DModel": 120, "STDiT2": 200}


@dataclass(frozen=True)
class SiteShape:
    """One site: ``layers`` modules, each called with ``rows`` rows of ``tokens`` for one item. The model is one module.

    An item is one image or video in one half of the guidance batch.
    """

    layers: int
    tokens: int
    rows: int


class TemporalShape(Frozen):
    """Attention between the frames of a video, for each place of a frame by itself."""

    layers: Count
    frames: Count


class MlpShape(Frozen):
    """The MLPs between attentions: how many run in one model call, and the channels between their two products."""

    layers: Count
    hidden: Count


class CrossShape(Frozen):
    """The cross-attentions: how many run in one model call, and the words of a prompt that each attends to."""

    layers: Count
    words: Count


class ModelSpec(Frozen):
    """The transformer a plan was made for.

    layers: of self-attention between the tokens of an image or frame (site ``attn``). tokens: per image or frame.
    temporal: only in models of video whose frames attend to each other in modules of their own (site ``temporal``).
    cross, mlp: only in plans that have the site.
    """

    class_name: Name
    layers: Count
    heads: Count
    head_dim: Count
    tokens: Count
    in_channels: Count
    out_channels: Count
    temporal: TemporalShape | None = None
    cross: CrossShape | None = None
    mlp: MlpShape | None = None

    @property
    def width(self) -> int:
        """Channels of the attention module: heads * head_dim."""
        return self.heads * self.head_dim

    @property
    def sites(self) -> tuple[SiteName, ...]:
        """The sites that a plan for this model must have, in the order of `SITES`; ``model`` is free to any plan."""
        return tuple(site for site in SITES if site == "attn" or getattr(self, site, None) is not None)

    @overload
    def usual(self, site: Literal["mlp"]) -> MlpShape: ...

    @overload
    def usual(self, site: SiteName) -> CrossShape | MlpShape: ...

    def usual(self, site: SiteName) -> CrossShape | MlpShape:
        """How large an optional site is, where nobody says.

        Raises:
            ValueError: that cannot be guessed.
        """
        if site == "cross" and self.class_name in USUAL_WORDS:
            return CrossShape(layers=self.layers, words=USUAL_WORDS[self.class_name])
        if site == "cross":
            raise ValueError(
                f"{self.class_name} is not known to have cross-attention, as {', '.join(USUAL_WORDS)} are; leave it "
                "out, or give CrossShape(layers, words)"
            )
        if self.temporal is not None:
            raise ValueError(
                f"how many MLPs {self.class_name} has cannot be guessed; give MlpShape(layers, hidden), on the command "
                "line --mlps LAYERS,HIDDEN"
            )
        return MlpShape(layers=self.layers, hidden=MLP_RATIO * self.width)

    @property
    def required(self) -> Self:
        """The same without the sites that a plan may leave out."""
        return self.model_copy(update=dict.fromkeys(OPTIONAL_SITES))

    def shape(self, site: SiteName) -> SiteShape:
        """The modules of one site.

        A video of T frames of N tokens is T rows of N tokens for ``attn``, and N rows of T tokens for ``temporal``.

        Raises:
            ValueError: the model has no such site.
        """
        if site != "model" and site not in self.sites:
            raise ValueError(f"{self.class_name} has no site {site!r}, only {', '.join(self.sites)}")
        frames = 1 if self.temporal is None else self.temporal.frames
        if site == "temporal" and self.temporal is not None:
            return SiteShape(layers=self.temporal.layers, tokens=frames, rows=self.tokens)
        layers: int = 1 if site == "model" else self.layers if site == "attn" else getattr(self, site).layers
        return SiteShape(layers=layers, tokens=self.tokens, rows=frames)

    @model_serializer(mode="wrap")
    def _absent_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        absent = ("temporal", *OPTIONAL_SITES)
        return {key: value for key, value in written.items() if value is not None or key not in absent}
