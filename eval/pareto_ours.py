"""Our plans for a share of the MACs, over as many steps as suit it best."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ditfastattn.errors import DitFastAttnError
from eval.pareto_bench import Bench, Candidate, full_plan
from plans import Plan
from plans.macs import total_macs

SHARES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2)  # of the base's MACs
STEPS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3)  # of the base's steps, that a plan of ours may take


def ours(bench: Bench, base: int) -> Iterator[Candidate]:
    """Plans of at most a share of the base's MACs: over all its steps, and over as many steps as are predicted to end
    nearest to its images."""
    full = total_macs(full_plan(bench, base)).full
    reference = bench.calibrated_on(base)
    counts = sorted({max(2, round(share * base)) for share in STEPS}, reverse=True)
    short = {steps: reference.distance(bench.calibrated_on(steps)) for steps in counts}
    for name, kind in (("together", "all"), ("cells", "all"), ("cells, attention", "attn")):
        for share in SHARES:
            tried: list[tuple[float, int, Plan]] = []
            for steps in counts:
                try:
                    plan, drift = cheap(bench, steps, name, kind, share * full)
                except DitFastAttnError:
                    continue  # not even the cheapest plan of so many steps
                tried.append((math.hypot(short[steps], drift), steps, plan))
            for what, some in ((f"ours, {name}", tried), (f"ours, {name}, all steps", tried[:1])):
                if not some or (what.endswith("all steps") and some[0][1] != base):
                    continue
                predicted, steps, plan = min(some, key=lambda one: one[0])
                yield what, f"{share:g}, {steps} steps, predicted {predicted:.4f}", plan, steps


def cheap(bench: Bench, steps: int, name: str, kind: str, macs: float) -> tuple[Plan, float]:
    """A plan of no more MACs, attention and MLPs, and its predicted drift."""
    found = bench.priced(steps, kind)
    if name == "together":
        return found.rhythms.costing(macs)
    plan = found.menu.costing(macs)
    return plan, found.menu.predicted(plan)
