"""Median times of functions that are run in turn, so that a change of clocks meets all alike."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Thunk = Callable[[], object]


def captured(run: Thunk) -> Thunk:
    """``run`` as a CUDA graph: its time is then the device's alone. It must have run before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


def interleaved(runs: Mapping[str, Thunk], device: torch.device, repeats: int, launches: int) -> dict[str, float]:
    """Median microseconds of one call of each, by CUDA events on a GPU, else by the process's clock.

    Args:
        repeats: rounds that count; one before them warms up.
        launches: calls in a row that are timed together. In eager mode their launches may take longer than their
            work, and then that is what is measured.
    """
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            took = _on_gpu(run, launches) if device.type == "cuda" else _on_cpu(run, launches)
            if repeat:
                measured[name].append(took / launches)
    return {name: statistics.median(values) for name, values in measured.items()}


def _on_gpu(run: Thunk, launches: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
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
