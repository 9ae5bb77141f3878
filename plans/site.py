"""What one site does: a grid of methods, layers x steps, and the rules of its cells."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from plans.fields import Frozen, Loss
from plans.forecast import fault
from plans.method import Method, Window
from plans.model import ATTENTION_SITES, SiteName, SiteShape

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
    """A layer in a sentence: "layer 3" of the images' attention, "temporal layer 3", "cross layer 3", "the model"."""
    if site == "model":
        return "the model"
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


def check_cells(name: SiteName, site: Site, guided: bool, timesteps: Sequence[float]) -> None:
    """Raises ValueError for a cell that needs what is not there: an earlier step, guidance, or a window."""
    for layer, method in enumerate(site.methods[0]):
        if method is not Method.FULL:
            raise ValueError(
                f"step 0 has {method} in {layer_name(name, layer)}, but there is nothing to reuse yet; "
                "step 0 is FULL in every layer"
            )
    for step, row in enumerate(site.methods):
        for layer, method in enumerate(row):
            if name not in ATTENTION_SITES and method not in methods_of(name):
                raise ValueError(
                    f"step {step} has {method} in {layer_name(name, layer)}; "
                    f"the site {name} has only {', '.join(methods_of(name))}"
                )
            if method.shares_guidance and not guided:
                raise ValueError(
                    f"step {step} has {method} in {layer_name(name, layer)}, but the guidance layout is 'none'; "
                    "without a conditional half only AST, its forecasts, WA_RS and FULL are possible"
                )
    for layer, column in enumerate(zip(*site.methods, strict=True)):
        _check_forecasts(layer_name(name, layer), column, timesteps)


def methods_of(name: SiteName) -> tuple[Method, ...]:
    """The methods that a site's cells may have, in cost order."""
    if name in ATTENTION_SITES:
        return tuple(Method)
    shared = () if name == "model" else (Method.ASC,)
    return (*(method for method in Method if method.reuses_output), *shared, Method.FULL)


def _check_forecasts(name: str, column: Sequence[Method], timesteps: Sequence[float]) -> None:
    """Raises ValueError for a forecast that lacks outputs, or has two of one timestep."""
    computed: list[float] = []
    for step, (method, timestep) in enumerate(zip(column, timesteps, strict=True)):
        if (reason := fault(method, computed)) is not None:
            raise ValueError(f"step {step} has {method} in {name}, {reason}")
        if not method.reuses_output:
            computed.append(timestep)


def check_skips(sites: Mapping[SiteName, Site]) -> None:
    """Raises ValueError for a cell that would compute something in a step that is skipped."""
    if "model" not in sites:
        return
    for step, (output,) in enumerate(sites["model"].methods):
        if output is Method.FULL:
            continue
        for name, site in sites.items():
            for layer, method in enumerate(site.methods[step]):
                if name != "model" and method is not Method.AST:
                    raise ValueError(
                        f"step {step} has {output} in the model, so nothing of it is computed, but {method} in "
                        f"{layer_name(name, layer)}; make every other cell of that step AST (Plan.skipping does)"
                    )


def without_steps(site: Site, steps: Container[int]) -> Site:
    """The site with AST, decided by nothing, in every cell of these steps."""
    width = len(site.methods[0])
    methods = [(Method.AST,) * width if step in steps else row for step, row in enumerate(site.methods)]
    losses = [(None,) * width if step in steps else row for step, row in enumerate(site.losses)]
    return new_site(methods, losses, site.window)
