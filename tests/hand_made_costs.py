"""A table of round numbers, and a way of running a model that takes just so long: the clock is moved on by it alone."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ditfastattn.cost import CostTable
from ditfastattn.cost.rows import Row
from plans import Window

BLOCKS = {
    "FULL": 100.0,
    "FULL + residual": 130.0,
    "FULL + half residual": 115.0,
    "WA_RS": 80.0,
    "ASC": 70.0,
    "ASC + half residual": 85.0,
    "WA_RS_ASC": 60.0,
    "AST": 40.0,
    "AST_1, mlp AST": 12.0,
    "AST_2, mlp AST": 14.0,
    "mlp FULL + output": 43.0,
    "mlp ASC": 25.0,
    "mlp ASC + output": 27.0,
    "mlp AST": 8.0,
    "mlp AST_1": 11.0,
    "mlp AST_2": 12.0,
    "FULL, mlp AST": 64.0,
    "AST_2, mlp AST_2": 20.0,
    "WA_RS_ASC, mlp ASC": 45.0,
}
STEPS = {"step": 200.0, "first step": 1700.0, "call": 10.0}
TIMES = {
    **BLOCKS,
    "model FULL": 60.0,
    "model FULL + output": 62.0,
    "model AST": 5.0,
    "model AST_1": 7.0,
    "model AST_2": 9.0,
    "token order": 6.0,
    **STEPS,
}


class Clocked:
    """A way (``ditfastattn.cost.measuring.Way``) whose rows take known times; a thunk is that long, of however many
    layers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, microseconds: Mapping[str, float], layers: int = 1) -> None:
        self.now, self.calls, self.layers = 0.0, 0, layers
        self.microseconds = microseconds
        monkeypatch.setattr("ditfastattn.cost.timing.time.perf_counter", lambda: self.now)

    def prepare(self, row: Row) -> Callable[[], None]:
        def run() -> None:
            self.calls += 1
            # Every seventh call is disturbed: a median does not mind.
            self.now += (self.microseconds[row.name] + 1000 * (self.calls % 7 == 0)) / 1e6

        return run

    def step_rows(self) -> Mapping[str, float]:
        return {name: self.microseconds[name] for name in STEPS}


def clocked(adapter: Any, monkeypatch: pytest.MonkeyPatch, factor: float = 1, **kwargs: Any) -> tuple[CostTable, int]:
    """A table of ``factor`` times TIMES, and how often something was run for it: never if it was on the disk."""
    way = Clocked(monkeypatch, {row: factor * us for row, us in TIMES.items()})
    given = {"runtime": "clocked", "window": Window(left=3, right=1)} | kwargs
    table = CostTable.of(adapter, given.pop("batch", 4), 16, "sdpa", lambda context: way, **given)
    return table, way.calls
