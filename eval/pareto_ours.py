"""Our plans: the least drift found at each speedup, and at what kind of plan the search ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calibration.errors import CalibrationError
from calibration.pool import compresses_nothing, pool
from calibration.prices import Macs, Prices, Times
from calibration.speedup import Front, landed, within
from ditfastattn.cost import CostTable
from eval.pareto_bench import Bench, Candidate, full_plan
from eval.pareto_file import plan_name
from eval.pareto_time import timed_as
from plans import Plan, save


class Timed(Times):
    """Also knows the uncompressed run of fewer steps, compiled as a whole, which no plan has to follow.

    Args:
        base: steps of the uncompressed run.
        whole: what that run costs, compiled as a whole, in the table's milliseconds.
    """

    def __init__(self, table: CostTable, base: int, whole: float) -> None:
        super().__init__(table)
        self.base, self.whole = base, whole

    def of(self, plan: Plan) -> float:
        found = super().of(plan)
        fewer = plan.steps < self.base and compresses_nothing(plan)
        return min(found, self.whole * plan.steps / self.base) if fewer else found


def ours(bench: Bench, base: int) -> Iterator[Candidate]:
    """The best of each speedup, by measured times where there are some, else by MACs; and the best that compresses
    attention alone, by the paper's methods. The plans are saved beside the rows."""
    prices, full = _prices(bench, base)
    bench.prices = prices

    def measured(plan: Plan) -> float:
        if bench.stopwatch is None:
            return prices.of(plan) / full
        return 1 / bench.stopwatch.speedup(timed_as(plan), plan.steps).speedup

    for speedup in bench.args.speedups:
        try:
            front, _ = landed(lambda budget: searched(bench, base, prices, budget), full, 1 / speedup, measured)
        except CalibrationError as error:
            print(f"nothing of ours at {speedup:g} x: {error}", flush=True)
            continue
        best, attention = front.best, front.best_of("attention")
        note = f"least drift found at {speedup:g} x from {base} steps by python -m eval pareto: {best.name}"
        model = Path(bench.args.model).name
        plan = best.plan.model_copy(update={"note": note})
        folder, name = bench.args.out / "plans", f"{speedup:g}x"
        save(plan, folder / plan_name(model, base, name))
        yield "ours", f"{speedup:g} x: {best.name}", plan, plan.steps
        if attention is not None and attention is not best:
            save(attention.plan, folder / plan_name(model, base, f"{name}-attention"))
            yield "ours, attention only", f"{speedup:g} x", attention.plan, attention.plan.steps


def _prices(bench: Bench, base: int) -> tuple[Prices, float]:
    """What plans cost, and the uncompressed run by the same measure."""
    plan = every_site(bench, base)
    if bench.stopwatch is None:
        return Macs(), Macs().of(plan)
    table = bench.stopwatch.table()
    times = Times(table)
    bench.slow = times.slow()
    whole = times.of(plan) * bench.stopwatch.speedup(plan, base).speedup
    print(f"uncompressed {bench.stopwatch.full_ms():.1f} ms; all FULL {times.of(plan):.1f} ms by the table, "
          f"{times.of(plan) / whole:.2f} of the uncompressed run's time by the clock", flush=True)  # fmt: skip
    return Timed(table, base, whole), whole


def searched(bench: Bench, base: int, prices: Prices, budget: float) -> Front:
    """All that is found within one budget."""
    spacing, skips = bench.steps(base)
    errors = bench.priced(base)
    candidates = pool(
        lambda steps: every_site(bench, steps), base, budget, prices, bench.slow, errors, spacing.chosen, skips
    )
    seen, unseen = bench.trials(base)
    return within(budget, list(candidates), prices, seen, unseen, bench.args.evaluations, bench.args.seed, bench.slow)


def every_site(bench: Bench, steps: int) -> Plan:
    """All FULL, MLPs included."""
    return full_plan(bench, steps).with_mlp(bench.mlp)
