"""Hypothesis strategies for every plan the rules allow, small enough to shrink."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from plans import (
    Budget,
    Calibration,
    CrossShape,
    GuidanceSpec,
    Method,
    MlpShape,
    ModelSpec,
    Plan,
    SamplerSpec,
    Site,
    TemporalShape,
    Window,
)
from plans.forecast import feasible
from plans.method import TOKEN_ORDERS
from plans.site import methods_of

# An alphabet, not a filter: names are drawn often, and rejected draws would trip Hypothesis' health checks.
printable = st.text("abzAZ09_-.+ éß中😀", min_size=1, max_size=12)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite | texts
settings = st.dictionaries(printable, scalars | st.lists(scalars, max_size=3), max_size=4)
unit = st.floats(0, 1)
drifts = st.lists(unit, min_size=1, max_size=3).map(tuple)
losses = st.none() | st.floats(0, 2)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    counts = {
        name: draw(st.integers(1, limit))
        for name, limit in [("layers", 4), ("heads", 4), ("head_dim", 8), ("tokens", 40)]
    }
    temporal = draw(st.none() | st.builds(TemporalShape, layers=st.integers(1, 3), frames=st.integers(1, 9)))
    channels = {"in_channels": draw(st.integers(1, 9)), "out_channels": 4}
    mlp = draw(st.none() | st.builds(MlpShape, layers=st.integers(1, 3), hidden=st.integers(1, 9)))
    cross = draw(st.none() | st.builds(CrossShape, layers=st.integers(1, 3), words=st.integers(1, 9)))
    return ModelSpec(class_name=draw(printable), temporal=temporal, cross=cross, mlp=mlp, **channels, **counts)


@st.composite
def samplers(draw: st.DrawFn) -> SamplerSpec:
    times = draw(st.lists(finite, min_size=1, max_size=5))
    return SamplerSpec(
        class_name=draw(printable), settings=draw(settings), timesteps=tuple(sorted(times, reverse=True))
    )


@st.composite
def guidances(draw: st.DrawFn) -> GuidanceSpec:
    layout = draw(st.sampled_from(["none", "cond_first", "uncond_first"]))
    scale = 1.0 if layout == "none" else draw(st.floats(1, 50, exclude_min=True))
    return GuidanceSpec(scale=scale, layout=layout)


@st.composite
def calibrations(draw: st.DrawFn, steps: int) -> Calibration:
    fields: dict[str, Any] = {name: draw(printable) for name in ("loss", "search", "dtype", "device", "kernel")}
    return Calibration(
        threshold=draw(st.floats(0, 2)),
        methods=tuple(draw(st.lists(st.sampled_from(Method), unique=True))),
        labels=tuple(draw(st.lists(st.integers(0, 999), max_size=3))),
        prompts=tuple(draw(st.lists(texts, max_size=2))),
        negative_prompt=draw(st.none() | texts),
        seed=draw(st.integers()),
        versions=draw(st.dictionaries(texts, texts, max_size=2)),
        created=draw(st.datetimes()).isoformat(),
        sensitivity=draw(st.just(()) | st.tuples(*[st.floats(0, 99)] * steps)),
        budget=draw(
            st.none() | st.builds(Budget, asked=st.floats(0.01, 1), achieved=drifts, upper=unit, predicted=unit)
        ),
        **fields,
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    model, sampler, guidance = draw(models()), draw(samplers()), draw(guidances())
    allowed = [method for method in Method if guidance.layout != "none" or not method.shares_guidance]
    steps = len(sampler.timesteps)

    def window(tokens: int) -> Window:
        return Window(left=draw(st.integers(0, tokens)), right=draw(st.integers(0, tokens)))

    def rows(cells: st.SearchStrategy[Any], layers: int, count: int) -> list[list[Any]]:
        return draw(st.lists(st.lists(cells, min_size=layers, max_size=layers), min_size=count, max_size=count))

    def column(cells: list[Method]) -> tuple[Method, ...]:
        return feasible(cells, sampler.timesteps)

    skips = draw(st.lists(st.sampled_from(methods_of("model")), min_size=steps - 1, max_size=steps - 1))
    output = column([Method.FULL, *skips]) if draw(st.booleans()) else (Method.FULL,) * steps
    sites = {}
    for name in model.sites:
        shape = model.shape(name)
        here = [method for method in allowed if method in methods_of(name)]
        grid = [[Method.FULL] * shape.layers, *rows(st.sampled_from(here), shape.layers, steps - 1)]
        grid = [
            row if method is Method.FULL else [Method.AST] * shape.layers
            for method, row in zip(output, grid, strict=True)
        ]
        grid = list(zip(*map(column, zip(*grid, strict=True)), strict=True))
        own = window(shape.tokens) if name == "temporal" else None
        sites[name] = Site(methods=grid, losses=rows(losses, shape.layers, steps), window=own)
    if any(method is not Method.FULL for method in output):
        sites["model"] = Site(methods=[(method,) for method in output], losses=[(None,)] * steps)
    return Plan(
        model=model,
        sampler=sampler,
        guidance=guidance,
        window=window(model.tokens),
        token_order=draw(st.sampled_from(TOKEN_ORDERS)),
        sites=sites,
        calibration=draw(st.none() | calibrations(steps)),
        note=draw(texts),
    )
