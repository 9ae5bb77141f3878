"""What plans of ours are compared with: fewer steps, and the schedules of others."""

from __future__ import annotations

from collections.abc import Iterator

from eval.pareto_bench import Bench, Candidate, full_plan
from plans import make

SHARES = (0.8, 0.6, 0.5, 0.4, 0.3)  # of the base's steps


def rivals(bench: Bench, base: int) -> Iterator[Candidate]:
    """What is not ours."""
    for share in SHARES:
        yield "fewer steps", f"{round(share * base)}", None, round(share * base)
    full = full_plan(bench, base)
    for interval in (2, 3, 4):
        yield "FORA", f"interval {interval}", make.fora(full, interval), base
        for order in (1, 2):
            plan = make.taylorseer(full, interval, order)
            yield "TaylorSeer-like", f"interval {interval}, order {order}", plan, base
        yield "skip", f"interval {interval}", make.skip(full, interval), base
    for interval in (2, 3):
        yield "PAB", f"interval {interval}", make.pab(full, interval), base
