"""Which layer takes which of its schedules: an integer program (``scipy.optimize.milp``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from calibration.columns import Schedule
from calibration.errors import CalibrationError
from calibration.quiet import quiet

GAP = 1e-4  # of the optimum, within which the solver may stop


def least_error(layers: Sequence[Sequence[Schedule]], cost: float) -> list[Schedule]:
    """One schedule a layer, of the least summed error among those that cost no more than ``cost`` together.

    Raises:
        CalibrationError: the cheapest of all cost more.
    """
    least = sum(min(schedule.cost for schedule in menu) for menu in layers)
    if least > cost:
        raise CalibrationError(
            f"a plan may cost {cost:.4g}, and the cheapest costs {least:.4g}: ask for a smaller speedup, "
            "fewer steps, or allow more methods"
        )
    return _chosen(layers, [s.error for menu in layers for s in menu], [s.cost for menu in layers for s in menu], cost)


def least_cost(layers: Sequence[Sequence[Schedule]], error: float) -> list[Schedule]:
    """One schedule a layer, of the least summed cost among those whose errors sum to no more than ``error``.

    Raises:
        CalibrationError: the least error of all is larger.
    """
    least = sum(min(schedule.error for schedule in menu) for menu in layers)
    if least > error:
        raise CalibrationError(f"an error of {error:.4g} was asked for, and the least that plans have is {least:.4g}")
    return _chosen(layers, [s.cost for menu in layers for s in menu], [s.error for menu in layers for s in menu], error)


def _chosen(
    layers: Sequence[Sequence[Schedule]], minimised: Sequence[float], limited: Sequence[float], limit: float
) -> list[Schedule]:
    """Multiple-choice knapsack: one of each menu, the least ``minimised`` with ``limited`` up to ``limit``."""
    sizes = [len(menu) for menu in layers]
    count = sum(sizes)
    of_layer = np.repeat(np.arange(len(layers)), sizes)
    one_each = coo_array((np.ones(count), (of_layer, np.arange(count))), shape=(len(layers), count))
    scale, unit = max(minimised) or 1.0, limit or max(limited) or 1.0  # the solver's tolerances are absolute
    with quiet():  # HiGHS tells of solutions that it repairs, also when asked to be silent
        found = milp(
            np.asarray(minimised) / scale,
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each.tocsr(), 1, 1),
                LinearConstraint(np.asarray(limited)[None] / unit, -np.inf, limit / unit),
            ],
            options={"mip_rel_gap": GAP},
        )
    if found.x is None:
        raise CalibrationError(f"the integer program was not solved: {found.message}")
    begin = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [menu[int(np.argmax(found.x[first : first + len(menu)]))] for first, menu in zip(begin, layers, strict=True)]
