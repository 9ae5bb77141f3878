"""Times of launches on the GPU, and what its memory and arithmetic allow at best."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditfastattn.cost.timing import once
from plans import Window

FULL, WINDOW, ADD, SUBTRACT = "full", "window", "window + residual", "full - window"

Shape = tuple[int, int, int, int]  # (B, H, N, D)
Launch = Callable[[Sequence[Tensor]], Tensor]  # of (q, k, v, other), each (B, N, H, D)


class Case(NamedTuple):
    """One row to be timed at a shape."""

    op: str
    kernel: str
    window: Window | None


@dataclass(frozen=True)
class Peaks:
    """What this GPU reached here: ``flops`` per second in a matrix product, ``bytes`` per second in a copy."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """What a row must do at least."""

    flops: float
    bytes: float

    @classmethod
    def of(cls, op: str, shape: Shape, window: Window | None) -> "Work":
        batch, heads, tokens, head_dim = shape
        pairs = tokens * tokens if window is None else window.pairs(tokens)
        tensors = 5 if op in (ADD, SUBTRACT) else 4
        return cls(4.0 * batch * heads * pairs * head_dim, 2.0 * tensors * batch * heads * tokens * head_dim)

    def floor_us(self, peaks: Peaks) -> float:
        return 1e6 * max(self.flops / peaks.flops, self.bytes / peaks.bytes)


@dataclass
class Budget:
    """Seconds that each kernel may take, over the whole command, until it is ready to be timed: a library that
    compiles for every shape must not hold up the others. What is left out is kept, with its reason."""

    seconds: float
    exempt: tuple[str, ...] = ()
    clock: Callable[[], float] = time.monotonic
    spent: Counter[str] = field(default_factory=Counter)
    left_out: list[dict[str, Any]] = field(default_factory=list)

    def prepared(self, case: Case, where: str, prepare: Callable[[], Any]) -> Any:
        """``prepare()``; None, and a line in ``left_out``, if it fails or the kernel's seconds are used up."""
        if self.spent[case.kernel] > self.seconds and case.kernel not in self.exempt:
            self.leave_out(case.kernel, where, f"its {self.seconds:g} s for compiling are used up (see --budget)")
            return None
        begun = self.clock()
        try:
            return prepare()
        except Exception as error:  # every library has exceptions of its own
            reason = " ".join(str(error).split())[:160]
            self.leave_out(case.kernel, f"{where}, {case.op}", f"{type(error).__name__}: {reason}")
            return None
        finally:
            self.spent[case.kernel] += self.clock() - begun  # type: ignore[assignment]

    def leave_out(self, kernel: str, where: str, why: str) -> None:
        entry = {"kernel": kernel, "where": where, "why": why}
        if entry not in self.left_out:
            self.left_out.append(entry)
            print(f"left out: {kernel}, {where}: {why}", flush=True)


def inputs(shape: Shape, dtype: torch.dtype) -> list[list[Tensor]]:
    """Sets of (q, k, v, other), together several times the cache."""
    batch, heads, tokens, head_dim = shape
    size = 4 * 2 * batch * heads * tokens * head_dim
    count = max(2, math.ceil(4 * torch.cuda.get_device_properties().L2_cache_size / size))
    layout = (batch, tokens, heads, head_dim)
    return [[torch.randn(layout, device="cuda", dtype=dtype) for _ in range(4)] for _ in range(min(count, 64))]


class Run(NamedTuple):
    launch: Callable[[], Any]  # every set once
    captured: bool


def replayed(launch: Launch, sets: list[list[Tensor]]) -> Run:
    """``launch`` on every set, as one CUDA graph; launched directly where a library cannot be captured."""
    for _ in range(2):
        launch(sets[0])  # compiles, and measures cuts
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for tensors in sets:
                launch(tensors)
    except RuntimeError:
        torch.cuda.synchronize()
        return Run(lambda: [launch(tensors) for tensors in sets].clear(), captured=False)
    return Run(graph.replay, captured=True)


def times(runs: dict[Any, Run], launches: int, repeats: int) -> dict[Any, float]:
    """Median microseconds of one of ``launches``, interleaved."""
    measured: dict[Any, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            # Directly launched, it queues up behind a head start: the host's time is not counted.
            took = once(run.launch, torch.device("cuda"), head_start=not run.captured).device
            if repeat:  # the first round warms up
                measured[name].append(took / launches)
    return {name: statistics.median(values) for name, values in measured.items()}


def peaks() -> Peaks:
    side, megabytes = 8192, 2048
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(megabytes * 2**18, device="cuda")
    target = torch.empty_like(source)
    sets = [[a], [b]]
    runs = {"product": replayed(lambda _: a @ b, sets), "copy": replayed(lambda _: target.copy_(source), sets)}
    measured = times(runs, len(sets), repeats=9)
    return Peaks(
        flops=2.0 * side**3 / (1e-6 * measured["product"]),
        bytes=2.0 * source.numel() * source.element_size() / (1e-6 * measured["copy"]),
    )
