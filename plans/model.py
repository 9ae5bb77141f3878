"""The transformer that a plan was made for: where its attention and its MLPs are, and how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import SerializerFunctionWrapHandler, model_serializer

from plans.fields import Count, Frozen, Name

# Attention between the tokens of an image or frame; attention between frames, place by place; the MLPs' outputs before
# their gates; the whole model's output, where a step can be skipped.
SiteName = Literal["attn", "temporal", "mlp", "model"]
SITES: tuple[SiteName, ...] = get_args(SiteName)
ATTENTION_SITES: tuple[SiteName, ...] = ("attn", "temporal")
MLP_RATIO = 4  # hidden channels of an MLP for one of the model's, in DiT, PixArt, Latte and Open-Sora


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


class ModelSpec(Frozen):
    """The transformer a plan was made for.

    layers: of self-attention between the tokens of an image or frame (site ``attn``). tokens: per image or frame.
    temporal: only in models of video whose frames attend to each other in modules of their own (site ``temporal``).
    mlp: only in plans that have the site ``mlp``.
    """

    class_name: Name
    layers: Count
    heads: Count
    head_dim: Count
    tokens: Count
    in_channels: Count
    out_channels: Count
    temporal: TemporalShape | None = None
    mlp: MlpShape | None = None

    @property
    def width(self) -> int:
        """Channels of the attention module: heads * head_dim."""
        return self.heads * self.head_dim

    @property
    def sites(self) -> tuple[SiteName, ...]:
        """The sites that a plan for this model must have, in the order of `SITES`; ``model`` is free to any plan."""
        has = {"attn": True, "temporal": self.temporal is not None, "mlp": self.mlp is not None}
        return tuple(site for site in SITES if has.get(site))

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
        layers = {"attn": self.layers, "mlp": 0 if self.mlp is None else self.mlp.layers, "model": 1}[site]
        return SiteShape(layers=layers, tokens=self.tokens, rows=frames)

    @model_serializer(mode="wrap")
    def _absent_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        return {key: value for key, value in written.items() if key not in ("temporal", "mlp") or value is not None}
