"""Ranks: shares, sums that cannot differ, a device each, and one voice."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from thread_ranks import on_ranks

from ditfastattn.console import run
from ditfastattn.errors import LoadError, RankError
from ditfastattn.ranks import Ranks, start

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 21])
def test_shares_cut_the_range_into_nearly_equal_parts(world: int, count: int) -> None:
    parts = [Ranks(rank, world).share(count) for rank in range(world)]
    assert [index for part in parts for index in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_mean_is_weighted_and_the_same_everywhere() -> None:
    values, weights = [0.1, 0.7, 1e-17], [3, 1, 2]
    means = on_ranks(3, lambda ranks: ranks.mean(values[ranks.rank], weights[ranks.rank]))
    assert means[0] == means[1] == means[2] == pytest.approx((0.3 + 0.7 + 2e-17) / 6)
    huge = on_ranks(2, lambda ranks: ranks.mean(1.7e308, 5))
    assert huge == [1.7e308] * 2


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_so_for_all(odd: float) -> None:
    means = on_ranks(2, lambda ranks: ranks.mean((0.0, odd)[ranks.rank], 1))
    assert all(math.isnan(mean) for mean in means)  # so that no rank accepts what another rejects


def test_rank_0_is_heard_by_all() -> None:
    assert on_ranks(3, lambda ranks: ranks.broadcast(f"from {ranks.rank}")) == ["from 0"] * 3


def test_alone_nothing_is_started() -> None:
    with start({}) as ranks:
        assert (ranks.rank, ranks.world, ranks.first) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        assert ranks.gather("x") == ["x"] and ranks.mean(0.3, 5) == 0.3
        assert ranks.count(2) == 2 and ranks.count(3) == 5
        assert ranks.device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("ranks", "name", "words"),
    [
        (Ranks(), "tpu9", "no device 'tpu9'"),
        (Ranks(1, 2, 1), "cuda:0", "one device for 2 processes"),
        (Ranks(5, 8, 5), "cuda", "more processes on this host than it has GPUs"),
    ],
)
def test_devices_that_are_not_there(ranks: Ranks, name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RankError, match=words):
        ranks.device(name)


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RankError, match="start with torchrun"), start({"WORLD_SIZE": "2"}):
        pass


def two_processes(work: Callable[[Ranks], None], told: Path) -> list[int]:
    """Exit statuses of ``work`` on two real ranks with the store that torchrun keeps for them; stderr goes to ``told``.

    Forked, so that nothing is imported again.
    """
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
    )
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torchrun |= {"WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "0"}

    def process(rank: int) -> None:
        os.environ.update(torchrun, RANK=str(rank), LOCAL_RANK=str(rank))
        with open(told, "a") as sys.stderr, open(f"{told}.out", "a") as sys.stdout:

            def command() -> int:
                with start() as ranks:
                    work(ranks)
                return 0

            sys.exit(run(command))

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=process, args=(rank,)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
    return [one.exitcode if one.exitcode is not None else one.kill() or 99 for one in processes]


def test_ranks_of_two_processes(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        assert (ranks.gather(ranks.rank), ranks.broadcast(ranks.rank)) == ([0, 1], 0)
        assert ranks.mean(float(ranks.rank), 1 + ranks.rank) == pytest.approx(2 / 3)
        ranks.count(ranks.rank + 1)
        ranks.barrier()
        assert ranks.count(0) == 3
        print(f"rank {ranks.rank}")

    assert two_processes(work, tmp_path / "told") == [0, 0]
    assert (tmp_path / "told.out").read_text() == "rank 0\n"


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1)])
def test_what_fails_is_told_once_and_ends_all(tmp_path: Path, failing: tuple[int, ...]) -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank in failing:
            raise LoadError("no weights here")
        ranks.barrier()

    assert two_processes(work, tmp_path / "told") == [2, 2]
    assert (tmp_path / "told").read_text() == "error: no weights here\n"


def test_a_killed_rank_ends_the_other(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        ranks.barrier()
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.barrier()

    assert two_processes(work, tmp_path / "told") == [2, -signal.SIGKILL]
    (line,) = (tmp_path / "told").read_text().splitlines()
    assert "another of the 2 processes has ended" in line


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are told by name on Linux alone")
def test_no_thread_of_the_process_group_outlives_it(tmp_path: Path) -> None:
    """Also where a module is loaded meanwhile whose defaults keep the group that there is."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from ditfastattn.ranks import start\n"
        "def threads():\n"
        "    return [file.read_text() for file in Path('/proc/self/task').glob('*/comm')]\n"
        "with start() as ranks:\n"
        "    import torch.distributed.nn.functional\n"
        "    ranks.barrier()\n"
        "    assert any('gloo' in name for name in threads())\n"
        "assert not any('gloo' in name for name in threads()), threads()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
