"""Several processes, one number: `torchrun -m eval fid ...` gives each a contiguous part of the images."""

from __future__ import annotations

import os
from functools import reduce
from typing import TypeVar

import torch.distributed as dist

from eval.frechet import Moments

T = TypeVar("T")


class Ranks:
    """This process among those that torchrun started; alone where it did not."""

    def __init__(self) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        # Sums travel as float64 on the host, which gloo carries whatever the network ran on.
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, count: int, batch: int) -> tuple[int, int]:
        """[start, stop) of this rank's images: contiguous, so that rank order is file order, and whole batches of
        the one sequence, since a network's float32 output depends, in the last bits, on its batch."""
        batches = -(-count // batch)
        start, stop = (batches * r // self.world * batch for r in (self.rank, self.rank + 1))
        return min(start, count), min(stop, count)

    def gather(self, mine: T) -> list[T]:
        """What each rank has, in rank order, on every rank."""
        if self.world == 1:
            return [mine]
        everyone: list[T] = [mine] * self.world
        dist.all_gather_object(everyone, mine)
        return everyone

    def merge(self, mine: Moments) -> Moments:
        """Moments of the images of all ranks, bit for bit the same on each: merged in rank order, by Chan's
        update. Another number of ranks rounds differently, by parts in 1e-14."""
        return reduce(Moments.merge, self.gather(mine))
