"""Local search by whole runs: what one cell does to the image depends on all others, and a run knows.

The changes that are tried leave the cost about as it is: two steps exchange what they do, the parts of a site that are
reused at a step are forecast by another order, own timesteps move, and of them those that are skipped come and go. A
change is kept if the images end nearer by more than chance (``Outcome.beats``), so that a few images do not choose a
plan for themselves alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from calibration.pool import compresses_nothing, computes_nothing_last, uses
from calibration.prices import Prices
from calibration.spacing import moved
from calibration.trials import Outcome, Trials
from plans import Method, Plan, SiteName
from plans.forecast import feasible
from plans.make import ORDERS, uncompressed

Grid = dict[SiteName, list[list[Method]]]
FAR = 0.3  # of the exchanges are between any two steps, the others between neighbours
TRIES = 20  # changes drawn in vain, after which there are none left


def improve(
    plan: Plan,
    trials: Trials,
    prices: Prices,
    budget: float,
    evaluations: int,
    seed: int,
    slow: Sequence[Method] = (),
    on_trial: Callable[[Outcome], None] | None = None,
) -> tuple[Plan, Outcome]:
    """The best plan within the budget that so many trials lead to, and its outcome.

    Args:
        plan: one that is within the budget.
        slow: methods that are not faster than FULL, which no layer takes.
        on_trial: called with the best outcome so far after every trial.
    """
    draw = random.Random(seed)
    best, outcome = plan, trials.of(plan)
    orders = [method for method in ORDERS if method not in slow]
    for _ in range(evaluations):
        changed = _changed(best, draw, orders, slow, prices, budget)
        if changed is None:
            break
        found = trials.of(changed)
        if found.beats(outcome):
            best, outcome = changed, found
        if on_trial:
            on_trial(outcome)
    return best, outcome


def _changed(
    plan: Plan,
    draw: random.Random,
    orders: Sequence[Method],
    slow: Sequence[Method],
    prices: Prices,
    budget: float,
) -> Plan | None:
    """Another plan within the budget, one change away; None if none was found."""
    for _ in range(TRIES):
        if plan.sampler.own_timesteps and (compresses_nothing(plan) or draw.random() < 0.5):
            timesteps = moved(plan.sampler.timesteps, draw)
            if timesteps != plan.sampler.timesteps:
                return plan.with_timesteps(timesteps)
            continue
        changed = _other_skips(plan, draw) if "model" in plan.sites else _other_cells(plan, draw, orders)
        if changed is None or uses(changed, slow) or computes_nothing_last(changed):
            continue
        if changed.sites != plan.sites and prices.of(changed) <= budget * (1 + 1e-9):
            return changed
    return None


def _other_cells(plan: Plan, draw: random.Random, orders: Sequence[Method]) -> Plan:
    """Other methods in layers. Forecasts are of a lower order where an exchange left them too few computed outputs."""
    grid: Grid = {name: [list(row) for row in site.methods] for name, site in plan.sites.items()}
    if draw.random() < 0.5:
        _exchange(grid, plan.steps, draw)
    else:
        _reorder(grid, plan.steps, draw, orders)
    for site, rows in grid.items():
        columns = [feasible(column, plan.sampler.timesteps) for column in zip(*rows, strict=True)]
        plan = plan.with_methods(list(zip(*columns, strict=True)), site=site)
    return plan


def _exchange(grid: Grid, steps: int, draw: random.Random) -> None:
    """Two steps but the first exchange what they do, at every site."""
    if steps < 3:
        return
    one = draw.randrange(1, steps)
    neighbour = one + 1 if one + 1 < steps else one - 1
    other = draw.randrange(1, steps) if draw.random() < FAR else neighbour
    for rows in grid.values():
        rows[one], rows[other] = rows[other], rows[one]


def _reorder(grid: Grid, steps: int, draw: random.Random, orders: Sequence[Method]) -> None:
    """What is reused at a step of a site is forecast by another order, or as it was."""
    if steps < 2 or len(orders) < 2:
        return
    row = grid[draw.choice(list(grid))][draw.randrange(1, steps)]
    order = draw.choice(list(orders))
    row[:] = [order if method.reuses_output else method for method in row]


def _other_skips(plan: Plan, draw: random.Random) -> Plan | None:
    """A plan that computes all of its layers where it calls the model, and skips other steps, or by another order."""
    times, column = list(plan.sampler.timesteps), list(plan.column(0, "model"))
    skipped, change = sorted(plan.skipped), draw.random()
    if plan.sampler.own_timesteps and change < 0.3:
        if draw.random() < 0.5 and skipped:
            at = draw.choice(skipped)
            del times[at], column[at]
        else:
            at = draw.randrange(1, plan.steps)
            times.insert(at, float(round((times[at - 1] + times[at]) / 2)))
            column.insert(at, draw.choice(ORDERS))
        if any(before <= after for before, after in pairwise(times)):
            return None
    elif change < 0.5 and skipped:
        column[draw.choice(skipped)] = draw.choice(ORDERS)
    else:
        rows: Grid = {"model": [[method] for method in column]}
        _exchange(rows, plan.steps, draw)
        column = [method for (method,) in rows["model"]]
    column = list(feasible(column, times))
    full = uncompressed(plan, sampler=plan.sampler.model_copy(update={"timesteps": tuple(times)}))
    return (full.with_mlp(plan.model.mlp) if "mlp" in plan.sites else full).skipping(column)
