"""What the attention of one site does: a grid of methods, layers x steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from plans.fields import Frozen, Loss
from plans.method import Method, Window
from plans.model import SiteName, SiteShape

Grid = tuple[tuple[Method, ...], ...]
Losses = tuple[tuple[float | None, ...], ...]


class Site(Frozen):
    """What one kind of module does: methods[step][layer], and beside each the loss that decided it.

    A loss is None where there was none to compare: FULL by rule or because every candidate was rejected.
    window: of the site ``temporal``; that of ``attn`` is the plan's.
    """

    methods: Grid
    losses: tuple[tuple[Loss | None, ...], ...]
    window: Window | None = None

    @model_serializer(mode="wrap")
    def _absent_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if written.get("window") is None:
            written.pop("window", None)
        return written


def new_site(
    grid: Sequence[Sequence[Method]], losses: Sequence[Sequence[float | None]] | None, window: Window | None
) -> Site:
    """A site of this grid; without losses nothing decided its cells."""
    methods = tuple(tuple(row) for row in grid)
    if losses is None:
        losses = [[None] * len(row) for row in methods]
    return Site(methods=methods, losses=tuple(tuple(row) for row in losses), window=window)


def layer_name(site: SiteName, layer: int) -> str:
    """A layer in a sentence: "layer 3" of the images' attention, "temporal layer 3"."""
    return f"layer {layer}" if site == "attn" else f"{site} layer {layer}"


def check_window(name: str, window: Window, tokens: int, of: str) -> None:
    """Raises ValueError if a window is larger than what it looks through."""
    for side, size in (("left", window.left), ("right", window.right)):
        if size > tokens:
            raise ValueError(f"{name}.{side} is {size}, more than the model's {tokens} {of}; use 0 to {tokens}")


def check_shape(name: SiteName, site: Site, shape: SiteShape, steps: int) -> None:
    """Raises ValueError unless there is one row a step with one cell a layer."""
    of = "layers" if name == "attn" else f"{name} layers"
    grids: tuple[tuple[str, Sequence[Sequence[object]]], ...] = (("methods", site.methods), ("losses", site.losses))
    for part, rows in grids:
        if len(rows) != steps:
            raise ValueError(
                f"sites.{name}.{part} has {len(rows)} rows, but the sampler has {steps} timesteps; "
                "write one row per step"
            )
        for step, row in enumerate(rows):
            if len(row) != shape.layers:
                raise ValueError(
                    f"sites.{name}.{part}[{step}] has {len(row)} cells, but the model has {shape.layers} {of}; "
                    "write one cell per layer"
                )


def check_cells(name: SiteName, site: Site, guided: bool) -> None:
    """Raises ValueError for a cell that needs what is not there: an earlier step, or guidance."""
    for layer, method in enumerate(site.methods[0]):
        if method is not Method.FULL:
            raise ValueError(
                f"step 0 has {method} in {layer_name(name, layer)}, but there is nothing to reuse yet; "
                "step 0 is FULL in every layer"
            )
    if guided:
        return
    for step, row in enumerate(site.methods):
        for layer, method in enumerate(row):
            if method.shares_guidance:
                raise ValueError(
                    f"step {step} has {method} in {layer_name(name, layer)}, but the guidance layout is 'none'; "
                    "without a conditional half only AST, WA_RS and FULL are possible"
                )
