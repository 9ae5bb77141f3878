"""Median times of functions that are run in turn, so that a change of clocks meets all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

Thunk = Callable[[], object]
# GPU cycles that are longer than the host takes to launch what is timed: about 20 ms for steps, 1 ms for a few graphs.
HEAD_START, GRAPH_START = 40_000_000, 2_000_000
SHOWN_AFTER = 2  # seconds, before which no bar is worth it: on a GPU there is none


class Launched(NamedTuple):
    """Microseconds of work that is launched from the host: the device's own time, and the host's to launch it.

    Without a GPU both are the same.
    """

    device: float
    host: float


def once(work: Thunk, device: torch.device, head_start: bool) -> Launched:
    """Of one call of ``work``, until the device has done it.

    Args:
        head_start: the device begins late, so that it never waits for the host, whose time is told apart.
    """
    if device.type != "cuda":
        took = _on_cpu(work, 1)
        return Launched(took, took)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    if head_start:
        torch.cuda._sleep(HEAD_START)
    begin.record()
    host = _on_cpu(work, 1)
    end.record()
    end.synchronize()
    return Launched(1000 * begin.elapsed_time(end), host)


def launched(work: Thunk, device: torch.device, repeats: int = 5) -> Launched:
    """Medians of :func:`once`, after a call that warms up: the device's time with a head start, the host's without, as
    launching takes longer while much is waiting."""
    found = [(once(work, device, head_start=True), once(work, device, head_start=False)) for _ in range(repeats + 1)]
    return Launched(
        statistics.median(with_start.device for with_start, _ in found[1:]),
        statistics.median(without.host for _, without in found[1:]),
    )


def captured(run: Thunk, pool: Any = None) -> Thunk:
    """``run`` as a CUDA graph: its time is then the device's alone. It must have run before.

    Args:
        pool: of memory that graphs share which are never replayed at the same time (``torch.cuda.graph_pool_handle``).
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        run()
    return graph.replay


def interleaved(
    runs: Mapping[str, Thunk], device: torch.device, repeats: int, launches: int, graphs: bool = False
) -> dict[str, float]:
    """Median microseconds of one call of each, by CUDA events on a GPU, else by the process's clock.

    Args:
        repeats: rounds that count; one before them warms up.
        launches: calls in a row that are timed together. In eager mode their launches may take longer than their
            work, and then that is what is measured.
        graphs: the calls replay graphs; they have a head start, so that launching is in no time.
    """
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in tqdm(range(repeats + 1), desc="timing", unit="round", delay=SHOWN_AFTER, leave=False):
        for name, run in runs.items():
            took = _on_gpu(run, launches, graphs) if device.type == "cuda" else _on_cpu(run, launches)
            if repeat:
                measured[name].append(took / launches)
    return {name: statistics.median(values) for name, values in measured.items()}


def _on_gpu(run: Thunk, launches: int, graphs: bool) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    if graphs:
        torch.cuda._sleep(GRAPH_START)
    begin.record()
    for _ in range(launches):
        run()
    end.record()
    end.synchronize()
    return 1000 * begin.elapsed_time(end)


def _on_cpu(run: Thunk, launches: int) -> float:
    begin = time.perf_counter()
    for _ in range(launches):
        run()
    return 1e6 * (time.perf_counter() - begin)
