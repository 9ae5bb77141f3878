"""The transformer that a plan was made for: where its attention is, and how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import SerializerFunctionWrapHandler, model_serializer

from plans.fields import Count, Frozen, Name

SiteName = Literal["attn", "temporal"]  # between the tokens of an image or frame; between frames, place by place
SITES: tuple[SiteName, ...] = get_args(SiteName)


@dataclass(frozen=True)
class SiteShape:
    """The attention of one site: of ``layers`` modules, each called with ``rows`` rows of ``tokens`` for one item.

    An item is one image or video in one half of the guidance batch.
    """

    layers: int
    tokens: int
    rows: int


class TemporalShape(Frozen):
    """Attention between the frames of a video, for each place of a frame by itself."""

    layers: Count
    frames: Count


class ModelSpec(Frozen):
    """The transformer a plan was made for.

    layers: of self-attention between the tokens of an image or frame (site ``attn``). tokens: per image or frame.
    temporal: only in models of video whose frames attend to each other in modules of their own (site ``temporal``).
    """

    class_name: Name
    layers: Count
    heads: Count
    head_dim: Count
    tokens: Count
    in_channels: Count
    out_channels: Count
    temporal: TemporalShape | None = None

    @property
    def width(self) -> int:
        """Channels of the attention module: heads * head_dim."""
        return self.heads * self.head_dim

    @property
    def sites(self) -> tuple[SiteName, ...]:
        """The sites that this model has, in the order of `SITES`."""
        return SITES[:1] if self.temporal is None else SITES

    def shape(self, site: SiteName) -> SiteShape:
        """The attention of one site.

        A video of T frames of N tokens is T rows of N tokens for ``attn`` and N rows of T tokens for ``temporal``.

        Raises:
            ValueError: the model has no such site.
        """
        if site not in self.sites:
            raise ValueError(f"{self.class_name} has no site {site!r}, only {', '.join(self.sites)}")
        frames = 1 if self.temporal is None else self.temporal.frames
        if site == "attn" or self.temporal is None:
            return SiteShape(layers=self.layers, tokens=self.tokens, rows=frames)
        return SiteShape(layers=self.temporal.layers, tokens=frames, rows=self.tokens)

    @model_serializer(mode="wrap")
    def _absent_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if written.get("temporal") is None:
            written.pop("temporal", None)
        return written
