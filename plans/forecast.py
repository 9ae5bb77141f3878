"""Forecasts: a layer's output extrapolated over the sampler's timesteps from the last ones that were computed.

A forecast of order k is the polynomial of degree k through the last k + 1 computed outputs, at the present timestep:
Newton's interpolation with divided differences, here written by Lagrange's weights, which are the same polynomial.
TaylorSeer (arXiv 2503.06923) forecasts features by differences in the number of steps; over the timesteps themselves it
is also right where they are not evenly spaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from plans.method import Method


def forecast_weights(timestep: float, computed: Sequence[float]) -> tuple[float, ...]:
    """What each output counts in the forecast: prod over j != i of (t - t_j) / (t_i - t_j), in float64.

    Args:
        computed: the timesteps of the outputs, no two equal.
    """
    return tuple(
        prod((timestep - other) / (own - other) for j, other in enumerate(computed) if j != i)
        for i, own in enumerate(computed)
    )


def fault(method: Method, computed: Sequence[float]) -> str | None:
    """Why these outputs cannot be forecast from, as the end of a sentence; None if they can.

    Args:
        computed: the timesteps of all outputs that were computed before, in order.
    """
    read = computed[-method.outputs_read :]
    if not method.forecasts:
        return None
    if len(read) < method.outputs_read:
        return (
            f"which extrapolates {method.outputs_read} outputs, but only {len(read)} of the steps before it computed "
            "one; use AST or a lower order there"
        )
    if len(set(read)) < len(read):
        twice = next(timestep for timestep in read if list(read).count(timestep) > 1)
        return f"but two of the {len(read)} outputs that it extrapolates are both at timestep {twice:g}; use AST there"
    return None


def feasible(column: Sequence[Method], timesteps: Sequence[float]) -> tuple[Method, ...]:
    """The column of one layer with every forecast that lacks outputs replaced by the highest order that does not."""
    found: list[Method] = []
    computed: list[float] = []
    for method, timestep in zip(column, timesteps, strict=True):
        while fault(method, computed):
            method = _LOWER[method]
        if not method.reuses_output:
            computed.append(timestep)
        found.append(method)
    return tuple(found)


_LOWER = {Method.AST_2: Method.AST_1, Method.AST_1: Method.AST}
