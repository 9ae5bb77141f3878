"""The schedules of each layer that could be part of a best plan: least error for what they cost.

What a cell costs and how far off it is depend on the cells before it in its own layer: reuse on the age of what is
reused, a window on the residual that was stored for it. So a layer's schedule is a path through states, and for a price
of time the cheapest path is found by dynamic programming (Bellman 1957), of all layers of a site and all prices at
once. Going through prices gives points of the lower convex hull of (cost, error), not all of them: what is best only
between two neighbouring prices is left out, so that menus stay short. Which layer takes which of its schedules is
chosen by ``calibration.choose``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ditfastattn.cache import Rows
from plans import Method

PRICES = 64  # of a unit of cost, in units of error: the schedules of a layer are at most as many
_FIRST_LOOK = 16


class Choice(NamedTuple):
    """What a cell does, and what it keeps for windows that follow."""

    method: Method
    stores: Rows = Rows.NOTHING  # of the residual


class Schedule(NamedTuple):
    """One layer over all steps."""

    cost: float
    error: float
    methods: tuple[Method, ...]


Costs = Mapping[Choice, float]
"""Of every choice that may be taken; one that is missing is never taken."""

Errors = Callable[[int, Method, int, int], np.ndarray]
"""Of every layer, (L,) float64, at (step, method, age, gap).

``age`` counts steps back to what is reused (the output that a reusing method takes up, or the residual of a window; 0
for the others), ``gap`` those from there to the computed output before it (0 for none). Infinity forbids a cell.
"""


class _State(NamedTuple):
    """After a step."""

    age: int  # steps since the output was computed: 0 if at this one
    gap: int  # between that and the output computed before it, 0 for none, or none near enough
    even: bool  # the gap before that was as wide
    residual: Rows  # stored, and whole or half
    shared: bool  # it was stored by ASC, whose half stands for both
    residual_age: int


# How each state was reached: the number of the way, in every layer at every price, and the ways.
_Back = dict[_State, tuple[np.ndarray, list[tuple[_State, Choice]]]]
_START = _State(0, 0, False, Rows.NOTHING, False, 0)


def schedules(steps: int, costs: Costs, errors: Errors, longest: int) -> list[list[Schedule]]:
    """Schedules of each layer that are best at one of :data:`PRICES` prices, the dearest first.

    Args:
        costs: in any unit of time or work, of one cell; FULL without a stored residual must be among them.
        errors: of a cell, summed over cells.
        longest: steps over which anything is reused at most.
    """
    scale = _scale(steps, costs, errors)
    seen = _paths(steps, costs, errors, longest, scale * np.geomspace(1e-8, 1e8, _FIRST_LOOK))
    changes = [index for index in range(1, len(seen)) if seen[index] != seen[index - 1]]
    first, last = (changes[0], changes[-1]) if changes else (1, 1)
    wide = np.geomspace(1e-8, 1e8, _FIRST_LOOK)
    prices = np.geomspace(wide[first - 1], wide[last], PRICES - 2)
    priced = _paths(steps, costs, errors, longest, scale * np.concatenate([[0.0], prices, [1e12]]))
    return [
        _front([_schedule(path, layer, costs, errors) for path in dict.fromkeys(at[layer] for at in priced)])
        for layer in range(len(seen[0]))
    ]


def _paths(
    steps: int, costs: Costs, errors: Errors, longest: int, prices: np.ndarray
) -> list[tuple[tuple[Choice, ...], ...]]:
    """The choices of the least error + price * cost: [price][layer][step]."""
    begun = {_after(_START, choice, longest): choice for choice in costs if choice.method is Method.FULL}
    layers = len(errors(0, Method.FULL, 0, 0))
    values = {state: np.tile(prices * costs[choice], (layers, 1)) for state, choice in begun.items()}  # (L, prices)
    back: list[_Back] = []
    for step in range(1, steps):
        found: dict[_State, np.ndarray] = {}
        taken: _Back = {}
        for state, value in values.items():
            for choice, error in _open(step, state, costs, errors, longest):
                after, total = _after(state, choice, longest), value + (error[:, None] + prices * costs[choice])
                if after not in found:
                    found[after], taken[after] = total, (np.zeros(total.shape, dtype=np.int32), [(state, choice)])
                    continue
                which, ways = taken[after]
                which[total < found[after]] = len(ways)
                ways.append((state, choice))
                found[after] = np.minimum(found[after], total)
        values = found
        back.append(taken)
    ends = list(values)
    best = np.argmin(np.stack([values[end] for end in ends]), axis=0)  # (L, prices)
    return [
        tuple(_path(ends[best[layer, price]], (layer, price), back, begun) for layer in range(layers))
        for price in range(len(prices))
    ]


def cell_errors(methods: Sequence[Method], layer: int, errors: Errors) -> list[float]:
    """Of every cell of a layer, step by step."""
    computed, refreshed, found = [0], 0, [0.0]
    for step, method in enumerate(methods[1:], start=1):
        age, gap = step - refreshed if method.windowed else 0, 0
        if method.reuses_output:
            age, gap = step - computed[-1], computed[-1] - computed[-2] if len(computed) > 1 else 0
        else:
            computed.append(step)
        if method.refreshes_residual:
            refreshed = step
        found.append(float(errors(step, method, age, gap)[layer]))
    return found


def _scale(steps: int, costs: Costs, errors: Errors) -> float:
    """A usual error over a usual saving."""
    if steps < 2:  # step 0 is FULL: nothing is saved
        return 1.0
    full = costs[Choice(Method.FULL)]
    saved = [full - cost for cost in costs.values() if cost < full]
    methods = dict.fromkeys(choice.method for choice in costs)
    found = np.concatenate([errors(step, method, 1, 1) for step in range(1, steps) for method in methods])
    usual = found[np.isfinite(found) & (found > 0)]
    return float(np.median(usual) / np.median(saved)) if len(usual) and saved else 1.0


def _open(step: int, state: _State, costs: Costs, errors: Errors, longest: int) -> Iterator[tuple[Choice, np.ndarray]]:
    """What may follow, with its error in every layer."""
    for choice in costs:
        method, age, gap = choice.method, 0, 0
        if method.reuses_output:
            age, gap = state.age + 1, state.gap
        elif method.windowed:
            if state.residual is Rows.NOTHING:
                continue
            if method is Method.WA_RS and state.residual is Rows.CONDITIONAL_HALF and not state.shared:
                continue
            age = state.residual_age + 1
        if age > longest or (method.forecasts and not gap) or (method is Method.AST_2 and not state.even):
            continue
        error = errors(step, method, age, gap)
        if np.isfinite(error).any():
            yield choice, error


def _after(state: _State, choice: Choice, longest: int) -> _State:
    method = choice.method
    residual, shared, residual_age = state.residual, state.shared, state.residual_age + 1
    if method.refreshes_residual:
        residual, shared, residual_age = choice.stores, choice.stores is not Rows.NOTHING and method is Method.ASC, 0
    if residual is Rows.NOTHING or residual_age > longest:
        residual, shared, residual_age = Rows.NOTHING, False, 0
    if method.reuses_output:
        return state._replace(age=state.age + 1, residual=residual, shared=shared, residual_age=residual_age)
    gap = state.age + 1 if state is not _START and state.age < longest else 0
    return _State(0, gap, gap > 0 and gap == state.gap, residual, shared, residual_age)


def _path(
    end: _State, index: tuple[int, int], back: Sequence[_Back], begun: Mapping[_State, Choice]
) -> tuple[Choice, ...]:
    """The choices that led to ``end`` in one layer at one price."""
    path: list[Choice] = []
    for taken in reversed(back):
        which, ways = taken[end]
        end, choice = ways[which[index]]
        path.append(choice)
    return (begun[end], *reversed(path))


def _schedule(path: Sequence[Choice], layer: int, costs: Costs, errors: Errors) -> Schedule:
    methods = tuple(choice.method for choice in path)
    return Schedule(float(sum(costs[choice] for choice in path)), sum(cell_errors(methods, layer, errors)), methods)


def _front(found: Sequence[Schedule]) -> list[Schedule]:
    """Those that no other beats in both, the dearest first."""
    kept: list[Schedule] = []
    for schedule in sorted(found, key=lambda one: (one.cost, one.error)):
        if not kept or schedule.error < kept[-1].error:
            kept.append(schedule)
    return kept[::-1]
