"""What a capture that fails leaves behind: nothing. And functions that are recorded once."""

import gc
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ditfastattn.capture import CaptureError, Replayed, capture

pytestmark = pytest.mark.gpu


def reserved() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_reserved())


def reads(numbers: Tensor) -> object:
    """Waits for the device, which ends a capture before its time."""
    return (numbers * 3 == 3).nonzero()


def raises(numbers: Tensor) -> object:
    """Fails by itself: the capture can be ended as usual."""
    raise RuntimeError(f"{(numbers * 3).shape}")


@pytest.mark.parametrize("work", [reads, raises])
@pytest.mark.parametrize("shared", [False, True])
def test_a_capture_that_fails_leaves_nothing_behind(work: Callable[[Tensor], object], shared: bool) -> None:
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


def test_work_that_fails_at_once_is_no_reason_to_warn() -> None:
    def fails() -> None:
        raise RuntimeError("at once")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(CaptureError, match="at once"):
            capture(fails)
    assert not caught


def test_a_function_recorded_in_inference_mode_is_replayed_out_of_it() -> None:
    twice = Replayed(lambda numbers: numbers * 2)
    with torch.inference_mode():
        assert twice(torch.ones(3, device="cuda")).tolist() == [2, 2, 2]
    assert twice(torch.full((3,), 2.0, device="cuda")).tolist() == [4, 4, 4]
