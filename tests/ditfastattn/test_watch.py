"""Checks that are judged when their numbers arrive."""

import pytest
import torch

from ditfastattn.watch import Watch


def refuse(numbers: list[float]) -> None:
    if numbers[0] > 1:
        raise ValueError(f"{numbers[0]:g} is too much")


def test_on_a_cpu_numbers_are_judged_at_once() -> None:
    watch = Watch()
    watch.post(torch.tensor([1.0]), refuse)
    with pytest.raises(ValueError, match="2 is too much"):
        watch.post(torch.tensor([2.0]), refuse)


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_and_nothing_is_lost() -> None:
    watch = Watch()
    two = torch.full((1,), 2.0, device="cuda")
    watch.post(two - 1, refuse)  # the first pinned memory takes its time
    watch.drain()
    torch.cuda._sleep(1_000_000_000)  # the numbers come behind half a second of work
    watch.post(two + 1, refuse)
    watch.poll()
    with pytest.raises(ValueError, match="3 is too much"):
        watch.drain()
    watch.drain()


@pytest.mark.gpu
def test_a_run_that_is_over_is_not_judged() -> None:
    watch = Watch()
    watch.post(torch.tensor([2.0], device="cuda"), refuse)
    watch.forget()
    torch.cuda.synchronize()
    watch.poll()
    watch.drain()
