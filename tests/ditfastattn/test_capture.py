"""What a capture that fails leaves behind: nothing."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ditfastattn.capture import CaptureError, capture

pytestmark = pytest.mark.gpu


def reserved() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_reserved())


def reads(numbers: Tensor) -> None:
    """Waits for the device, which ends a capture before its time."""
    (numbers * 3 == 3).nonzero()


def raises(numbers: Tensor) -> None:
    """Fails by itself: the capture can be ended as usual."""
    raise RuntimeError(f"{(numbers * 3).shape}")


@pytest.mark.parametrize("work", [reads, raises])
@pytest.mark.parametrize("shared", [False, True])
def test_a_capture_that_fails_leaves_nothing_behind(work: Callable[[Tensor], None], shared: bool) -> None:
    numbers = torch.ones(1 << 20, device="cuda")
    stream = torch.cuda.current_stream()
    reads(numbers)
    before = reserved()
    kept: list[Tensor] = []
    graph = capture(lambda: kept.append(numbers + 1))
    for _ in range(3):
        with pytest.raises(CaptureError):
            capture(lambda: (torch.rand_like(numbers), work(numbers)), graph.pool() if shared else None)
        assert torch.cuda.current_stream() == stream
        torch.rand(1, device="cuda")
    graph.replay()
    assert bool((kept[0] == 2).all())
    del graph
    kept.clear()
    assert reserved() <= before
