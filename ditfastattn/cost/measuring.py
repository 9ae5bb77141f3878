"""Timing the rows of a table, one way of running the model at a time."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from ditfastattn.cost.rows import HOST_BLOCK, Row
from ditfastattn.cost.timing import Thunk, captured, interleaved, launched
from plans import Method


class Way(Protocol):
    """A way of running a model (``ditfastattn.cost.parts``): ``layers`` is how many blocks a block's thunk runs."""

    @property
    def layers(self) -> int: ...

    def prepare(self, row: Row) -> Thunk: ...

    def step_rows(self) -> Mapping[str, float]: ...


def measure(
    way: Way,
    rows: Sequence[Row],
    device: torch.device,
    *,
    graphs: bool = False,
    repeats: int = 9,
    launches: int | None = None,
) -> dict[str, float]:
    """Median microseconds of each row, of blocks those of one, interleaved.

    Args:
        graphs: capture each as a CUDA graph first, as prepared steps are.
        launches: calls timed together (default: on a GPU as many as run ten blocks, on a CPU 1).
    """
    runs = {row.name: way.prepare(row) for row in rows}
    for run in runs.values():
        run()  # compiles, and tunes kernels
    if graphs:
        torch.cuda.synchronize()
        pool = torch.cuda.graph_pool_handle()  # one for all: what a large batch needs would else add up
        runs = {name: captured(run, pool) for name, run in runs.items()}
    if launches is None:
        launches = max(1, 10 // way.layers) if device.type == "cuda" else 1
    blocks = {row.name: way.layers if row.is_block else 1 for row in rows}
    times = interleaved(runs, device, repeats, launches, graphs)
    if graphs:
        times[HOST_BLOCK], blocks[HOST_BLOCK] = launched(runs[Method.FULL], device).host, way.layers
    return {name: round(us / blocks[name], 3) for name, us in times.items()}
