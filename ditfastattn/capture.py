"""Work recorded as a CUDA graph."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor


class CaptureError(RuntimeError):
    """CUDA refused to record a step; the message says why."""


def capture(work: Callable[[], object], pool: Any = None) -> torch.cuda.CUDAGraph:
    """A graph of ``work``, which must have run before and reads and writes tensors that never move.

    Args:
        pool: of another graph's memory, for work that never runs at the same time. After an error torch may refuse it.

    Raises:
        CaptureError: it cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    # Only this thread's calls are recorded: another pipeline may run beside this one.
    try:
        with (
            _silent_if_empty(),
            torch.cuda.stream(torch.cuda.current_stream()),  # which a capture that fails does not set back
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            work()
    except RuntimeError as error:
        _give_up(graph, pool)
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise CaptureError(f"a step could not be captured ({str(error).splitlines()[0]})") from error
    return graph


@contextmanager
def _silent_if_empty() -> Iterator[None]:
    """Work that fails at its beginning leaves an empty graph, which nobody is going to replay."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The CUDA Graph is empty")
        yield


def _give_up(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Ends what a capture that failed has begun and torch would leave so: memory that is never freed, and a generator
    that refuses every later draw."""
    device = torch.cuda.current_device()
    try:
        graph.pool()
    except RuntimeError:  # the capture was not ended
        with suppress(RuntimeError):  # nor begun
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
    _ready_again(torch.cuda.default_generators[device])


def _ready_again(generator: torch.Generator) -> None:
    """A capture that fails leaves the generator marked as being captured, and every later draw from it would raise; its
    copy, at the same place in its sequence, is not marked."""
    generator.graphsafe_set_state(generator.clone_state())


class Replayed:
    """A function of tensors, recorded once for each shape of theirs: a few launches in place of many.

    What it returns is its own: read it before the next call. Where it cannot be recorded, as on a CPU, it is called.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._recorded: dict[Any, tuple[tuple[Tensor, ...], torch.cuda.CUDAGraph, Tensor] | None] = {}

    def __call__(self, *tensors: Tensor) -> Tensor:
        if not tensors[0].is_cuda:
            return self._function(*tensors)
        shapes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._first(tensors)
        recorded = self._recorded[shapes]
        if recorded is None:
            return self._function(*tensors)
        buffers, graph, found = recorded
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        return found

    def _first(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], torch.cuda.CUDAGraph, Tensor] | None:
        with torch.inference_mode(False), torch.no_grad():  # buffers that calls in every mode may write to
            buffers, found = tuple(tensor.clone() for tensor in tensors), list[Tensor]()
            self._function(*buffers)
            try:
                graph = capture(lambda: found.append(self._function(*buffers)))
            except CaptureError:
                return None
        return buffers, graph, found[-1]
