"""Our plans: the least drift found at each speedup, and at what kind of plan the search ended."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.errors import CalibrationError
from calibration.pool import pool
from calibration.prices import Macs, Prices, Times
from calibration.speedup import Front, landed, within
from ditfastattn.cost import CostTable
from eval.pareto_bench import Bench, Candidate, full_plan
from plans import Method, Plan

SPEEDUPS = (1.2, 1.3, 1.5, 1.6, 2.0, 2.5, 3.0)


class Timed(Times):
    """Also knows the uncompressed run of fewer steps, compiled as a whole, which no plan has to follow."""

    def __init__(self, table: CostTable, base: int, full_ms: float) -> None:
        super().__init__(table)
        self.base, self.full_ms = base, full_ms

    def of(self, plan: Plan) -> float:
        found = super().of(plan)
        return min(found, self.full_ms * plan.steps / self.base) if fewer(plan, self.base) else found


def fewer(plan: Plan, base: int) -> bool:
    """Whether fewer steps are all that a plan saves by."""
    return plan.steps < base and all(
        method is Method.FULL for site in plan.sites.values() for row in site.methods for method in row
    )


def ours(bench: Bench, base: int) -> Iterator[Candidate]:
    """The best of each speedup, by measured times where there are some, else by MACs; and the best that compresses
    attention alone, by the paper's methods."""
    prices: Prices = Macs()
    full = prices.of(every_site(bench, base))
    if bench.stopwatch is not None:
        full = bench.stopwatch.full_ms()
        prices = Timed(bench.stopwatch.table(), base, full)
        bench.slow = prices.slow()
        table = prices.of(every_site(bench, base))
        print(f"uncompressed {full:.1f} ms, all FULL by the table {table:.1f} ms", flush=True)
    bench.prices = prices

    def measured(plan: Plan) -> float:
        if bench.stopwatch is None:
            return prices.of(plan)
        return full / bench.stopwatch.speedup(None if fewer(plan, base) else plan, plan.steps)

    for speedup in bench.args.speedups:
        try:
            front, _ = landed(lambda budget: searched(bench, base, prices, budget), full / speedup, measured)
        except CalibrationError as error:
            print(f"nothing of ours at {speedup:g} x: {error}", flush=True)
            continue
        best, attention = front.best, front.best_of("attention")
        way = None if fewer(best.plan, base) else best.plan
        yield "ours", f"{speedup:g} x: {best.name}", way, best.plan.steps
        if attention is not None and attention is not best:
            yield "ours, attention only", f"{speedup:g} x", attention.plan, attention.plan.steps


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
