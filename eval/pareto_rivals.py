"""What plans of ours are compared with: fewer steps, the schedules of others, and the package cache-dit."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator

from calibration.smoothcache import smoothcache_errors
from eval import pareto_cache_dit
from eval.pareto_bench import Bench, Candidate, full_plan
from plans import Plan, make
from plans.macs import total_macs

SHARES = (0.8, 0.6, 0.5, 0.4, 0.3)  # of the base's steps, or MACs


def rivals(bench: Bench, base: int) -> Iterator[Candidate]:
    """Fewer steps, and schedules by rule."""
    return schedules(full_plan(bench, base))


def schedules(full: Plan) -> Iterator[Candidate]:
    """The same for an all-FULL plan of the base's steps."""
    base = full.steps
    fewer = {max(1, round(share * base)) for share in SHARES} - {base}
    for steps in sorted(fewer, reverse=True):
        yield "fewer steps", f"{steps}", None, steps
    for interval in (2, 3, 4):
        yield "FORA", f"interval {interval}", make.fora(full, interval), base
        for order in (1, 2):
            plan = make.taylorseer(full, interval, order)
            yield "TaylorSeer-like", f"interval {interval}, order {order}", plan, base
        yield "skip", f"interval {interval}", make.skip(full, interval), base
        for order in (1, 2):
            yield "skip", f"interval {interval}, order {order}", make.skip(full, interval, order), base
    for interval in (2, 3):
        yield "PAB", f"interval {interval}", make.pab(full, interval), base


def smoothcache(bench: Bench, base: int) -> Iterator[Candidate]:
    """SmoothCache by the lowest threshold that comes down to a share of the MACs, as far as any does."""
    plan, errors = smoothcache_errors(bench.pipe, bench.settings(base))
    every = (error for rows in errors.values() for row in rows for error in row if math.isfinite(error))
    thresholds = sorted({math.ceil(1e4 * error) / 1e4 for error in every})  # as they are shown
    for share in (0.9, *SHARES):
        index = bisect.bisect_left(
            thresholds, -share, key=lambda value: -total_macs(make.smoothcache(plan, errors, value)).percent / 100
        )
        if index < len(thresholds):
            threshold = thresholds[index]
            yield "SmoothCache", f"threshold {threshold:g}", make.smoothcache(plan, errors, threshold), base


def cache_dit(bench: Bench, base: int) -> Iterator[Candidate]:
    """DBCache with and without TaylorSeer, if the package is there."""
    why = pareto_cache_dit.missing()
    if why is not None:
        print(f"cache-dit is left out: {why}", flush=True)
        return
    blocks = len(bench.pipe.transformer.transformer_blocks)
    for setting in pareto_cache_dit.SETTINGS:
        way = pareto_cache_dit.DualBlockCache(*setting)
        if way.first < blocks:
            yield way.method, way.setting, way, base
