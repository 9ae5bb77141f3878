"""Other people's schedules as plans: what to compute at which step, decided by rule instead of by calibration.

Each takes a plan for its model, sampler, guidance and window, and gives a new one with a note that says what it is. In
all of them step 0 is computed, as in every plan.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from plans.forecast import feasible
from plans.method import Method
from plans.model import MlpShape, SiteName
from plans.run import SamplerSpec
from plans.schema import Plan

ORDERS = (Method.AST, Method.AST_1, Method.AST_2)  # what forecasts of order 0, 1 and 2 are called
_HOW = ("reused", "forecast with order 1", "forecast with order 2")
PAB_EDGE = 0.15  # the share of the steps at either end in which everything is computed


def fora(source: Plan, interval: int, *, mlp: bool = True, shape: MlpShape | None = None) -> Plan:
    """Attention and MLPs computed every ``interval``-th step, their outputs reused between (FORA, arXiv 2407.01425).

    Args:
        mlp: False leaves the MLPs alone.
        shape: of the MLPs, where the source does not say and they are not four times as wide as the model.

    Raises:
        ValueError: an interval below 1, or a shape that is needed.
    """
    what = "attention and MLPs" if mlp else "attention"
    note = f"{what} computed every {_th(interval)} step and reused between, as in FORA (arXiv 2407.01425)"
    return _everywhere(_empty(source, note, mlp, shape), _every(interval, 0))


def taylorseer(source: Plan, interval: int, order: int, *, mlp: bool = True, shape: MlpShape | None = None) -> Plan:
    """As `fora`, with forecasts of ``order`` between the computed steps (after TaylorSeer, arXiv 2503.06923).

    TaylorSeer takes differences in the number of steps; these forecasts are over the sampler's timesteps. Where too few
    outputs have been computed, at the beginning, the order is the highest that they allow.

    Raises:
        ValueError: as `fora`, or an order other than 1 and 2.
    """
    _check_order(order, lowest=1)
    what = "attention and MLPs" if mlp else "attention"
    note = (
        f"{what} computed every {_th(interval)} step and forecast with order {order} between, over the timesteps, "
        "after TaylorSeer (arXiv 2503.06923)"
    )
    return _everywhere(_empty(source, note, mlp, shape), _every(interval, order))


def spaced(source: Plan, computed: int, order: int) -> Plan:
    """Attention and MLPs computed at ``computed`` steps, evenly spaced, and between them reused (order 0) or forecast.

    The first and the last step are among them: what the last one adds is detail, which no earlier output has.

    Raises:
        ValueError: fewer steps than two, or more than there are; an order other than 0, 1 and 2; or a source of video
            that does not say how many MLPs there are.
    """
    full, how = _evenly(source, computed, order)
    note = f"attention and MLPs computed at {computed} of {source.steps} steps, evenly spaced, and {how} between"
    return _everywhere(_empty(source, note, mlp=True), _at(full, order))


def pab(source: Plan, interval: int, temporal_interval: int | None = None, cross_interval: int | None = None) -> Plan:
    """Pyramid attention broadcast (PAB, arXiv 2408.12588): attention alone, in the middle of the trajectory.

    In the first and the last 15 % of the steps all is computed; between, attention between the tokens of a frame every
    ``interval``-th step, attention between frames every ``temporal_interval``-th, cross-attention every
    ``cross_interval``-th. PAB's own intervals grow in this order; without the last, cross-attention is left alone.

    Raises:
        ValueError: an interval of any kind below 1, a temporal one for a model of images, or one of cross-attention for
            a model that is not known to have it and whose plan does not say how large it is.
    """
    if temporal_interval is not None and source.model.temporal is None:
        raise ValueError(f"{source.model.class_name} has no temporal attention; leave the temporal interval out")
    intervals: dict[SiteName, int] = {
        "attn": interval,
        "temporal": interval if temporal_interval is None else temporal_interval,
    }
    if cross_interval is not None:
        intervals["cross"] = cross_interval
    steps, first = source.steps, round(PAB_EDGE * source.steps)

    def rule_of(each: int) -> Callable[[int], Method]:
        every = _every(each, 0)
        return lambda step: every(step - first) if first <= step < steps - first else Method.FULL

    rates = f"{_th(interval)} step"
    if temporal_interval is not None:
        rates += f" (between frames every {_th(temporal_interval)})"
    if cross_interval is not None:
        rates += f", cross-attention every {_th(cross_interval)},"
    note = (
        f"attention computed every {rates} in the middle {1 - 2 * PAB_EDGE:.0%} of the steps, as in pyramid attention "
        "broadcast (arXiv 2408.12588)"
    )
    plan = _empty(source, note, mlp=False)
    if cross_interval is not None:
        plan = plan.with_cross(source.model.cross)
    for site in plan.sites:
        plan = _filled(plan, site, rule_of(intervals[site]))
    return plan


def skip(source: Plan, interval: int, order: int = 0) -> Plan:
    """The model called every ``interval``-th step only; between, its output is reused, or forecast with ``order``.

    Raises:
        ValueError: an interval below 1, or an order other than 0, 1 and 2.
    """
    _check_order(order, lowest=0)
    note = f"the model called every {_th(interval)} step, its output {_HOW[order]} between"
    plan = _empty(source, note, mlp=False)
    return plan.skipping(_column(plan, _every(interval, order)))


def spaced_calls(source: Plan, computed: int, order: int) -> Plan:
    """The model called at ``computed`` steps, evenly spaced, its output reused (order 0) or forecast between.

    The first and the last step are among them, as in `spaced`.

    Raises:
        ValueError: fewer steps than two, or more than there are; an order other than 0, 1 and 2.
    """
    full, how = _evenly(source, computed, order)
    note = f"the model called at {computed} of {source.steps} steps, evenly spaced, its output {how} between"
    plan = _empty(source, note, mlp=False)
    return plan.skipping(_column(plan, _at(full, order)))


def smoothcache(source: Plan, errors: Mapping[SiteName, Sequence[Sequence[float]]], threshold: float) -> Plan:
    """Each kind of layer computed when its last output no longer serves (SmoothCache, arXiv 2411.10510, Eq. 4).

    A computed output is reused for the longest run of steps after it whose last one it misses by no more than the
    threshold; the first and the last step are computed. The authors' code decides the same way.

    Args:
        errors: of every site, at [k - 1][t] the relative L1 error of reusing step t's output at step t + k, averaged
            over the site's layers (`calibration.smoothcache` measures them); k up to the longest run allowed.

    Raises:
        ValueError: a negative threshold, or errors of too few steps.
    """
    if not threshold >= 0:
        raise ValueError(f"the threshold is {threshold:g}; an error of 0.1, say, is a threshold of 0.1")
    note = (
        f"each kind of layer computed when its last output is off by more than {threshold:g} (relative L1), and reused "
        "until then, as in SmoothCache (arXiv 2411.10510)"
    )
    plan = _empty(source, note, mlp="mlp" in errors)
    if "cross" in errors:
        plan = plan.with_cross(source.model.cross)
    for site in plan.sites:
        plan = _filled(plan, site, _at(_smooth_steps(errors[site], threshold, plan.steps), 0))
    return plan


def _smooth_steps(errors: Sequence[Sequence[float]], threshold: float, steps: int) -> set[int]:
    """The steps at which a kind of layer is computed."""
    for k, row in enumerate(errors, start=1):
        if len(row) < steps - k:
            raise ValueError(f"there are errors of {len(row)} steps reused {k} later; the plan has {steps} steps")
    computed, step = {0, steps - 1}, 0
    while step < steps:
        computed.add(step)
        serves = [k for k, row in enumerate(errors, start=1) if step + k < steps and row[step] <= threshold]
        step += 1 + max(serves, default=0)
    return computed


def uncompressed(source: Plan, note: str = "", sampler: SamplerSpec | None = None) -> Plan:
    """The all-FULL plan for what ``source`` was made for, of attention alone; ``sampler``: in the place of its own."""
    temporal = source.sites["temporal"].window if "temporal" in source.sites else None
    return Plan.full(
        model=source.model.required,
        sampler=sampler or source.sampler,
        guidance=source.guidance,
        window=source.window,
        temporal_window=temporal,
        token_order=source.token_order,
        note=note,
    )


def _empty(source: Plan, note: str, mlp: bool, shape: MlpShape | None = None) -> Plan:
    """All FULL, with the site ``mlp`` or without, and without ``cross``."""
    plan = uncompressed(source, note)
    return plan.with_mlp(source.model.mlp if shape is None else shape) if mlp else plan


def _evenly(source: Plan, computed: int, order: int) -> tuple[set[int], str]:
    """So many steps, the first and the last among them, and in words what is done between."""
    if not 2 <= computed <= source.steps:
        raise ValueError(f"{computed} of {source.steps} steps cannot be computed: give 2 to {source.steps}")
    _check_order(order, lowest=0)
    return {index * (source.steps - 1) // (computed - 1) for index in range(computed)}, _HOW[order]


def _every(interval: int, order: int) -> Callable[[int], Method]:
    if interval < 1:
        raise ValueError(f"the interval is {interval}; computing every 2nd step, say, is an interval of 2")
    return lambda step: Method.FULL if step % interval == 0 else ORDERS[order]


def _at(steps: Container[int], order: int) -> Callable[[int], Method]:
    return lambda step: Method.FULL if step in steps else ORDERS[order]


def _column(plan: Plan, rule: Callable[[int], Method]) -> Sequence[Method]:
    return feasible([Method.FULL, *map(rule, range(1, plan.steps))], plan.sampler.timesteps)


def _filled(plan: Plan, site: SiteName, rule: Callable[[int], Method]) -> Plan:
    """The plan with one column in every layer of a site."""
    layers = plan.model.shape(site).layers
    return plan.with_methods([[method] * layers for method in _column(plan, rule)], site=site)


def _everywhere(plan: Plan, rule: Callable[[int], Method]) -> Plan:
    for site in plan.sites:
        plan = _filled(plan, site, rule)
    return plan


def _check_order(order: int, lowest: int) -> None:
    if not lowest <= order < len(ORDERS):
        raise ValueError(f"there is no forecast of order {order}; use {lowest} to {len(ORDERS) - 1}")


def _th(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(0 if number // 10 % 10 == 1 else number % 10, "th")
    return f"{number}{ending}"
