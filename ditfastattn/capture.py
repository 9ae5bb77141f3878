"""Work recorded as a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch


class CaptureError(RuntimeError):
    """CUDA refused to record a step; the message says why."""


def capture(work: Callable[[], object], pool: Any = None) -> torch.cuda.CUDAGraph:
    """A graph of ``work``, which must have run before and reads and writes tensors that never move.

    Args:
        pool: of another graph's memory, for work that never runs at the same time.

    Raises:
        CaptureError: it cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    # Only this thread's calls are recorded: another pipeline may run beside this one.
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _ready_again(torch.cuda.default_generators[torch.cuda.current_device()])
        raise CaptureError(f"a step could not be captured ({str(error).splitlines()[0]})") from error
    return graph


def _ready_again(generator: torch.Generator) -> None:
    """A capture that fails leaves the generator marked as being captured, and every later draw from it would raise; its
    copy, at the same place in its sequence, is not marked."""
    generator.graphsafe_set_state(generator.clone_state())
