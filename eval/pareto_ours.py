"""Our plans: the least drift found at each speedup, and which kind of candidate led to it."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.pool import pool
from calibration.prices import Macs, Prices
from calibration.speedup import Front, within
from eval.pareto_bench import Bench, Candidate, full_plan
from plans import Plan

SPEEDUPS = (1.2, 1.3, 1.5, 1.6, 2.0, 2.5, 3.0)
KINDS = {"attention": "ours, attention only", "cells": "ours, cells", "together": "ours, together"}


def ours(bench: Bench, base: int) -> Iterator[Candidate]:
    """The best of each speedup, and where it was begun from; of some kinds the best that were found on the way."""
    prices: Prices = bench.prices or Macs()
    full = prices.of(every_site(bench, base))
    for speedup in bench.args.speedups:
        front = searched(bench, base, prices, full / speedup)
        best = front.best
        yield "ours", f"{speedup:g} x: {best.name}, predicted {full / best.cost:.2f} x", best.plan, best.plan.steps
        for kind, name in KINDS.items():
            if (one := front.best_of(kind)) is not None:
                yield name, f"{speedup:g} x: {one.plan.steps} steps", one.plan, one.plan.steps


def searched(bench: Bench, base: int, prices: Prices, budget: float) -> Front:
    """All that is found within one budget."""
    candidates = pool(
        lambda steps: every_site(bench, steps), base, budget, prices, bench.slow, lambda kind: bench.priced(base, kind)
    )
    seen, unseen = bench.trials(base)
    return within(budget, list(candidates), prices, seen, unseen, bench.args.evaluations, bench.args.seed, bench.slow)


def every_site(bench: Bench, steps: int) -> Plan:
    """All FULL, MLPs included."""
    return full_plan(bench, steps).with_mlp(bench.mlp)
