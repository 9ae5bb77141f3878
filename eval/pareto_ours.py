"""Our plans: the least drift found at each speedup, and at what kind of plan the search ended."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.errors import CalibrationError
from calibration.pool import pool
from calibration.prices import Macs, Prices
from calibration.speedup import Front, within
from eval.pareto_bench import Bench, Candidate, full_plan
from plans import Plan

SPEEDUPS = (1.2, 1.3, 1.5, 1.6, 2.0, 2.5, 3.0)


def ours(bench: Bench, base: int) -> Iterator[Candidate]:
    """The best of each speedup, by measured times where there are some, else by MACs; and the best that compresses
    attention alone, by the paper's methods."""
    prices: Prices = bench.prices or Macs()
    full = bench.full_time.get(base) or prices.of(every_site(bench, base))
    print(f"uncompressed {full:.5g} {prices.unit}, by the table {prices.of(every_site(bench, base)):.5g}", flush=True)
    for speedup in bench.args.speedups:
        try:
            front = searched(bench, base, prices, full / speedup)
        except CalibrationError as error:
            print(f"nothing of ours at {speedup:g} x: {error}", flush=True)
            continue
        best, attention = front.best, front.best_of("attention")
        yield "ours", f"{speedup:g} x: {best.name}, predicted {full / best.cost:.2f} x", best.plan, best.plan.steps
        if attention is not None and attention is not best:
            predicted = f"{speedup:g} x: predicted {full / attention.cost:.2f} x"
            yield "ours, attention only", predicted, attention.plan, attention.plan.steps


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
