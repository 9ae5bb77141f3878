"""Ranks that are threads of one process: what several processes do, without starting them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ditfastattn.ranks import Ranks

T = TypeVar("T")


class ThreadRanks(Ranks):
    def __init__(self, rank: int, world: int, slots: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, world)
        self._slots, self._barrier = slots, barrier

    def gather(self, value: T) -> list[T]:
        self._slots[self.rank] = value
        self._barrier.wait()
        everyone = list(self._slots)
        self._barrier.wait()
        return everyone


def on_ranks(world: int, work: Callable[[Ranks], T]) -> list[T]:
    """What ``work(ranks)`` returns on each rank."""
    slots: list[Any] = [None] * world
    barrier = threading.Barrier(world, timeout=60)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: work(ThreadRanks(rank, world, slots, barrier)), range(world)))
