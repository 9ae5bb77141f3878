"""``python -m eval kernels``: times of attention kernels on this GPU, beside what its memory and arithmetic allow.

Every kernel of a shape runs in one process, in turn, on random inputs that together exceed the GPU's cache; launches
are replayed from CUDA graphs, so no time of the host is in the numbers. The floor of a row is the larger of two times:
its operands moved once at the speed of a copy, and its visible products at the speed of a large matrix product, both
measured in the same process.
"""

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditfastattn.errors import DitFastAttnError, KernelError
from ditfastattn.kernels.base import Kernel
from ditfastattn.kernels.flash3 import Flash3
from ditfastattn.kernels.flex import Flex
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.kernels.triton import Triton
from ditfastattn.kernels.varlen import Varlen
from ditfastattn.kernels.xformers import XFormers
from plans import Window
from plans.files import write_text

RESULTS = Path(__file__).parent / "results"
KERNELS: dict[str, type[Kernel]] = {k.name: k for k in (SDPA, Flex, XFormers, Varlen, Flash3, Triton)}
SHAPES = [(16, 16, 256, 72), (16, 16, 1024, 72), (2, 16, 4096, 72), (2, 16, 16384, 72), (2, 24, 4608, 128)]
QUICK = (16, 16, 1024, 72)
CURVE = [(2, 16, 2**power, 72) for power in range(8, 16)]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FULL, WINDOW, ADD, SUBTRACT = "full", "window", "window + residual", "full - window"
Shape = tuple[int, int, int, int]  # (B, H, N, D)
Launch = Callable[[Sequence[Tensor]], Tensor]  # of (q, k, v, other), each (B, N, H, D)


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


def inputs(shape: Shape, dtype: torch.dtype) -> list[list[Tensor]]:
    """Sets of (q, k, v, other), together several times the cache."""
    batch, heads, tokens, head_dim = shape
    size = 4 * 2 * batch * heads * tokens * head_dim
    count = max(2, math.ceil(4 * torch.cuda.get_device_properties().L2_cache_size / size))
    layout = (batch, tokens, heads, head_dim)
    return [[torch.randn(layout, device="cuda", dtype=dtype) for _ in range(4)] for _ in range(min(count, 64))]


def replayed(launch: Launch, sets: list[list[Tensor]]) -> Callable[[], None]:
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
        return lambda: [launch(tensors) for tensors in sets].clear()
    return graph.replay


def times(launches: dict[Any, Launch], sets: list[list[Tensor]], repeats: int) -> dict[Any, float]:
    """Median microseconds of one launch each, interleaved."""
    runs = {name: replayed(launch, sets) for name, launch in launches.items()}
    measured: dict[Any, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            if repeat:  # the first round warms up
                measured[name].append(1000 * begin.elapsed_time(end) / len(sets))
    return {name: statistics.median(values) for name, values in measured.items()}


def peaks() -> Peaks:
    side, megabytes = 8192, 2048
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(megabytes * 2**18, device="cuda")
    target = torch.empty_like(source)
    measured = times({"product": lambda _: a @ b, "copy": lambda _: target.copy_(source)}, [[a], [b]], repeats=9)
    return Peaks(
        flops=2.0 * side**3 / (1e-6 * measured["product"]),
        bytes=2.0 * source.numel() * source.element_size() / (1e-6 * measured["copy"]),
    )


def launches_of(
    kernels: dict[str, Kernel], shape: Shape, dtype: torch.dtype, windows: Sequence[Window], ops: Sequence[str]
) -> dict[tuple[str, str, Window | None], Launch]:
    """Everything to be timed at a shape, by (op, kernel, window)."""
    batch, heads, tokens, head_dim = shape
    sample = torch.empty(batch, tokens, heads, head_dim, device="cuda", dtype=dtype)
    launches: dict[tuple[str, str, Window | None], Launch] = {}
    for name, kernel in kernels.items():
        if kernel.not_supported_reasons(sample, windows[0]):
            continue
        if FULL in ops and (name == "sdpa" or type(kernel).full is not Kernel.full):
            launches[FULL, name, None] = lambda t, kernel=kernel: kernel.full(*t[:3])  # type: ignore[misc]
        if name == "sdpa":
            continue  # its window materialises the mask: the reference for errors, not for times
        for w in windows:
            if WINDOW in ops:
                launches[WINDOW, name, w] = lambda t, kernel=kernel, w=w: kernel.window(*t[:3], w)  # type: ignore[misc]
            if ADD in ops:
                launches[ADD, name, w] = lambda t, kernel=kernel, w=w: kernel.window(*t[:3], w, add=t[3])  # type: ignore[misc]
            if SUBTRACT in ops:
                launches[SUBTRACT, name, w] = lambda t, kernel=kernel, w=w: kernel.residual(*t, w)  # type: ignore[misc]
    return launches


def measure(
    kernels: dict[str, Kernel], shape: Shape, dtype: str, windows: Sequence[Window], ops: Sequence[str], top: Peaks
) -> list[dict[str, Any]]:
    """The rows of one shape and dtype."""
    torch._dynamo.reset()  # compiled functions of other shapes count against its limit
    launches = launches_of(kernels, shape, DTYPES[dtype], windows, ops)
    rows = []
    for (op, name, window), us in times(launches, inputs(shape, DTYPES[dtype]), repeats=15).items():
        work = Work.of(op, shape, window)
        rows.append(
            {
                "op": op,
                "kernel": name,
                "shape": list(shape),
                "dtype": dtype,
                "window": None if window is None else [window.left, window.right],
                "us": round(us, 2),
                "tflops": round(work.flops / us / 1e6, 1),
                "gbps": round(work.bytes / us / 1e3, 1),
                "floor_us": round(work.floor_us(top), 2),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row; the ratios compare with the fastest other library at the same work, and with SDPA's full."""
    lines = [
        f"{'(B, H, N, D)':<20}{'dtype':<6}{'op':<19}{'window':<11}{'kernel':<10}{'us':>9}{'TFLOP/s':>9}{'GB/s':>8}"
        f"{'of floor':>10}{'/ library':>11}{'/ SDPA full':>12}"
    ]
    for row in rows:
        place = [other for other in rows if (other["shape"], other["dtype"]) == (row["shape"], row["dtype"])]
        same = [other for other in place if (other["op"], other["window"]) == (row["op"], row["window"])]
        best = min((o["us"] for o in same if o["kernel"] not in ("triton", row["kernel"])), default=math.nan)
        full = min((o["us"] for o in place if o["op"] == FULL and o["kernel"] == "sdpa"), default=math.nan)
        window = "" if row["window"] is None else ",".join(str(side) for side in row["window"])
        lines.append(
            f"{tuple(row['shape'])!s:<20}{row['dtype']:<6}{row['op']:<19}{window:<11}{row['kernel']:<10}"
            f"{row['us']:>9.1f}{row['tflops']:>9.1f}{row['gbps']:>8.0f}{row['floor_us'] / row['us']:>10.0%}"
            f"{row['us'] / best:>11.2f}{row['us'] / full:>12.2f}"
        )
    return "\n".join(lines)


def plot(curve: Sequence[dict[str, Any]], device: str, file: Path) -> None:
    """Time against the number of tokens, windows of N/8 on each side, with the floors."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for op, kernel in dict.fromkeys((row["op"], row["kernel"]) for row in curve):
        rows = [row for row in curve if (row["op"], row["kernel"]) == (op, kernel)]
        axes.loglog([row["shape"][2] for row in rows], [row["us"] for row in rows], "o-", label=f"{op}, {kernel}")
    for op, style in ((FULL, "k:"), (ADD, "k--")):
        floors = sorted({(row["shape"][2], row["floor_us"]) for row in curve if row["op"] == op})
        axes.loglog([tokens for tokens, _ in floors], [us for _, us in floors], style, label=f"{op}, floor")
    axes.set_xlabel("tokens")
    axes.set_ylabel("microseconds")
    axes.set_title(f"2 x 16 heads of 72, bf16, window N/8 on each side, {device}", fontsize=10)
    axes.set_xscale("log", base=2)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150, bbox_inches="tight")
    plt.close(figure)


def versions() -> dict[str, str]:
    found: dict[str, str] = {"torch": str(torch.__version__)}
    for package in ("triton", "xformers", "tokenspeed-fa3"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"one shape, {QUICK}, bf16, no curve")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="comma-separated names (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for kernels.json and kernels.png")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write kernels.json and kernels.png (--quick: kernels-quick.json)."""
    arguments = parser().parse_args(argv)
    names = arguments.kernels.split(",")
    unknown = [name for name in names if name not in KERNELS]
    if unknown:
        raise KernelError(f"there is no kernel {unknown[0]!r}; choose among {', '.join(KERNELS)}")
    if not torch.cuda.is_available():
        raise DitFastAttnError("kernels are measured on a CUDA GPU; there is none")
    kernels = {name: KERNELS[name]() for name in names}
    sample = torch.empty(1, 64, 1, 72, device="cuda", dtype=torch.bfloat16)
    for name, kernel in kernels.items():
        for reason in kernel.not_supported_reasons(sample, Window(left=8, right=8)):
            print(f"{name} is left out: {reason}")

    top = peaks()
    device = torch.cuda.get_device_name()
    print(
        f"{device}: {top.flops / 1e12:.0f} TFLOP/s in a bf16 product, {top.bytes / 1e12:.2f} TB/s in a copy", flush=True
    )
    rows = []
    for shape in [QUICK] if arguments.quick else SHAPES:
        tokens = shape[2]
        windows = [Window(left=tokens // part, right=tokens // part) for part in (8, 16)]
        for dtype in ["bf16"] if arguments.quick else DTYPES:
            rows += measure(kernels, shape, dtype, windows, (FULL, WINDOW, ADD, SUBTRACT), top)
    print(table(rows))

    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "eval", "kernels", *(sys.argv[2:] if argv is None else argv)]),
        "device": device,
        "versions": versions(),
        "date": date.today().isoformat(),
        "product_tflops": round(top.flops / 1e12, 1),
        "copy_gbps": round(top.bytes / 1e9, 1),
        "rows": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.quick:
        fast = {name: kernel for name, kernel in kernels.items() if name != "flex"}
        result["curve"] = []
        for shape in CURVE:
            window = Window.default(shape[2])
            result["curve"] += measure(fast, shape, "bf16", [window], (FULL, ADD), top)
        plot(result["curve"], device, arguments.out / "kernels.png")
    file = arguments.out / ("kernels-quick.json" if arguments.quick else "kernels.json")
    write_text(file, json.dumps(result, indent=1) + "\n")
    print(f"written: {file}")
