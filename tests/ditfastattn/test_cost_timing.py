"""The GPU's clock and the host's, told apart: on a GPU that is played."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_made_costs import TIMES

from ditfastattn.cost import measure
from ditfastattn.cost.rows import HOST_BLOCK, rows_of
from ditfastattn.cost.timing import interleaved, launched, once
from ditfastattn.layout import Layout

CUDA = torch.device("cuda")


class PlayedGpu:
    """Work is launched at the host's time and done in turn; a sleep takes ``head_start`` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, head_start: float) -> None:
        self.host = self.device = 0.0
        played = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = played.device = max(played.device, played.host)

            def synchronize(self) -> None:
                played.host = max(played.host, self.at)

            def elapsed_time(self, end: "Event") -> float:
                return 1000 * (end.at - self.at)

        def sleep(cycles: int) -> None:
            played.device = max(played.device, played.host) + head_start

        monkeypatch.setattr("torch.cuda.Event", Event)
        monkeypatch.setattr("torch.cuda._sleep", sleep)
        monkeypatch.setattr("torch.cuda.synchronize", lambda: setattr(played, "host", max(played.host, played.device)))
        monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr("ditfastattn.cost.timing.time.perf_counter", lambda: played.host)

    def work(self, launches: float, takes: float) -> Callable[[], None]:
        """Something that the host launches in, and the device does in, so many microseconds."""

        def run() -> None:
            self.host += launches / 1e6
            self.device = max(self.device, self.host) + takes / 1e6

        return run


def test_a_head_start_tells_the_device_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PlayedGpu(monkeypatch, head_start=0.02)
    slow_host = gpu.work(launches=300, takes=50)
    assert once(slow_host, CUDA, head_start=True) == pytest.approx((50, 300))
    assert once(slow_host, CUDA, head_start=False) == pytest.approx((350, 300))  # the device waited for the host
    assert launched(slow_host, CUDA) == pytest.approx((50, 300))


def test_replayed_graphs_are_timed_without_their_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PlayedGpu(monkeypatch, head_start=0.02)
    runs = {"a": gpu.work(launches=30, takes=5), "b": gpu.work(launches=10, takes=40)}
    assert interleaved(runs, CUDA, 3, 4, graphs=True) == pytest.approx({"a": 5, "b": 40})
    with_launches = interleaved(runs, CUDA, 3, 4)
    assert with_launches["a"] == pytest.approx((4 * 30 + 5) / 4) and with_launches["b"] > 40


def test_a_captured_table_has_the_hosts_time_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PlayedGpu(monkeypatch, head_start=0.02)
    pools: list[Any] = []

    def captured(run: Callable[[], None], pool: Any) -> Callable[[], None]:
        pools.append(pool)
        return run

    monkeypatch.setattr("ditfastattn.cost.measuring.captured", captured)

    class Way:
        layers = 4

        def prepare(self, row: Any) -> Callable[[], None]:
            return gpu.work(launches=8, takes=4 * TIMES[row.name] if row.is_block else TIMES[row.name])

        def step_rows(self) -> dict[str, float]:
            return {}

    rows = rows_of(Layout.COND_FIRST, mlps=True)
    times = measure(Way(), rows, CUDA, graphs=True, repeats=2)
    assert times.pop(HOST_BLOCK) == pytest.approx(8 / 4)
    assert times == pytest.approx({row.name: TIMES[row.name] for row in rows})
    assert set(pools) == {(0, 1)} and len(pools) == len(rows)
