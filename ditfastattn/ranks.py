"""This process among those that ``torchrun`` started, or alone where it did not: then nothing here does anything.

Only small things travel (settings, losses, statistics), so all of it goes through gloo on the host, whatever device the
ranks compute on: nothing here ever waits for a GPU, and a CPU is enough to test it.
"""

import contextlib
import importlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ditfastattn.errors import RankError

T = TypeVar("T")

# Ranks meet only where their work ends, and one that resumes less waits for the slowest. A rank that dies ends the
# others at once (torchrun sees to it), so this is no way to notice a failure.
_PATIENCE = timedelta(days=1)
_FAILED, _COUNT = "ditfastattn/failed", "ditfastattn/count"


class Ranks:
    """``rank`` of ``world`` processes, the ``local``-th on its host. Every rank must make the same calls in order.

    Args:
        store: of the process group, where the ranks count and where the first to fail leaves word; None if alone.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0, store: dist.Store | None = None) -> None:
        self.rank, self.world, self.local = rank, world, local
        self._store = store
        self._counted = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes what all share and shows the bar."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This rank's part of ``range(count)``: contiguous, so that rank order is index order; sizes differ by one at
        most."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def gather(self, value: T) -> list[T]:
        """What every rank has, in rank order, on every rank.

        Raises:
            RankError: another rank has ended.
        """
        if self.world == 1:
            return [value]
        everyone: list[T] = [value] * self.world
        try:
            dist.all_gather_object(everyone, value)
        except RuntimeError as error:  # gloo's connection was closed by the peer
            raise RankError(
                f"another of the {self.world} processes has ended before its work was done (killed?); start the same "
                "command again"
            ) from error
        return everyone

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank. Raises RankError as :meth:`gather` does."""
        return self.gather(value if self.first else None)[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Returns when every rank has come here. Raises RankError as :meth:`gather` does."""
        self.gather(None)

    def mean(self, value: float, weight: float) -> float:
        """The weighted mean over ranks, the same to the last bit on each: all of them add the same numbers, and their
        sum is rounded once, so that not even its order matters. NaN if a value is not finite."""
        if self.world == 1:
            return value
        pairs = self.gather((value, weight))
        if not all(math.isfinite(v) for v, _ in pairs):
            return math.nan
        total = math.fsum(w for _, w in pairs)
        return math.fsum(v * (w / total) for v, w in pairs)

    def count(self, amount: int) -> int:
        """Adds to a number that all ranks share, without waiting for any; what it is now. Raises RankError as
        :meth:`gather` does."""
        if self._store is not None:
            try:
                return self._store.add(_COUNT, amount)
            except RuntimeError as error:
                raise RankError("torchrun itself has ended (killed?); start the same command again") from error
        self._counted += amount
        return self._counted

    def device(self, name: str | None) -> str:
        """The device of this rank: each takes a GPU of its own.

        Args:
            name: as the user gave it; None is a GPU if there is one, else "cpu".

        Raises:
            RankError: there is no such device, or not one for each rank.
        """
        if name is None:
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            kind = torch.device(name)
        except RuntimeError:
            raise RankError(f"there is no device {name!r}; give cpu, cuda, or cuda:0") from None
        if self.world > 1 and kind.index is not None:
            raise RankError(f"--device {name} is one device for {self.world} processes; give --device {kind.type}")
        if kind.type == "cuda" and self.world > 1:
            found = torch.cuda.device_count()
            if found and self.local >= found:
                raise RankError(
                    f"torchrun started more processes on this host than it has GPUs ({found}); give it "
                    f"--nproc-per-node {found}, or --device cpu"
                )
            name = f"cuda:{self.local}"
        try:
            torch.empty(1, device=name).item()
        except (RuntimeError, AssertionError) as error:
            raise RankError(f"device {name!r} cannot be used here: {str(error).splitlines()[0][:100]}") from error
        if name.startswith("cuda:"):  # kernels launch on the current GPU
            torch.cuda.set_device(name)
        return name

    def is_first_to_fail(self) -> bool:
        """Whether no other rank has failed before; from then on one has. What one sentence can say, one rank says."""
        if self._store is None:
            return True
        try:
            return self._store.compare_set(_FAILED, "", str(self.rank)) == str(self.rank).encode()
        except RuntimeError:  # the store is gone with the process that kept it
            return True


ALONE = Ranks()


@contextlib.contextmanager
def start(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """``with start() as ranks:`` joins the processes of ``torchrun``, on one host or several, until the block is left.

    Inside, only rank 0 prints to stdout. When the block raises, the first rank to do so raises on; every other exits
    with status 2 without a word, so that one failure is told once.

    Raises:
        RankError: the environment is not that of torchrun, or the others cannot be reached.
    """
    world = int(environment.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    ranks = _join(environment, world)
    silent = contextlib.nullcontext() if ranks.first else contextlib.redirect_stdout(io.StringIO())
    try:
        with silent:
            yield ranks
        ranks.barrier()
    except (Exception, KeyboardInterrupt):
        if ranks.is_first_to_fail():
            raise
        raise SystemExit(2) from None
    finally:
        dist.destroy_process_group()


def _join(environment: Mapping[str, str], world: int) -> Ranks:
    # The defaults of its functions keep the process group that there is when it is loaded. The group's threads would
    # outlive it, and now and then end the process by an abort.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        store, rank, world = next(dist.rendezvous("env://"))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"WORLD_SIZE is {world}, but the other processes cannot be joined ({str(error).splitlines()[0][:150]}); "
            "start with torchrun, or unset WORLD_SIZE"
        ) from error
    return Ranks(rank, world, int(environment.get("LOCAL_RANK", rank)), store)
