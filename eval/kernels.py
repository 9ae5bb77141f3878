"""``python -m eval kernels``: times of attention kernels on this GPU, beside what its memory and arithmetic allow.

Every kernel of a shape runs in one process, in turn, on random inputs that together exceed the GPU's cache; launches
are replayed from CUDA graphs, so no time of the host is in the numbers. The floor of a row is the larger of two times:
its operands moved once at the speed of a copy, and its visible products at the speed of a large matrix product, both
measured in the same process. A kernel that fails, or takes too long to compile, is left out with its reason.
"""

import json
import math
from collections.abc import Sequence
from datetime import date
from functools import partial
from typing import Any

import torch

from ditfastattn.errors import DitFastAttnError, KernelError
from ditfastattn.kernels import KERNELS
from ditfastattn.kernels.base import Kernel
from ditfastattn.kernels.versions import versions
from eval.arguments.kernels import QUICK, parser
from eval.kernel_plot import plot
from eval.record import command_line
from eval.timing import (
    ADD,
    FULL,
    SUBTRACT,
    WINDOW,
    Budget,
    Case,
    Launch,
    Peaks,
    Shape,
    Work,
    inputs,
    peaks,
    replayed,
    times,
)
from plans import Window
from plans.files import read_text, write_text

SHAPES = [(16, 16, 256, 72), (16, 16, 1024, 72), (2, 16, 4096, 72), (2, 16, 16384, 72), (2, 24, 4608, 128)]
CURVE = [(2, 16, 2**power, 72) for power in range(8, 16)]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
REQUIRED = ("sdpa", "triton")  # what the others are compared with is never left out for its compile time
FLEX_MASK_BYTES = 16  # for each of the N x N pairs, while FlexAttention makes its block mask


def cases(kernels: dict[str, Kernel], windows: Sequence[Window], ops: Sequence[str]) -> dict[Case, Launch]:
    """Everything to be timed at a shape."""
    found: dict[Case, Launch] = {}
    for name, kernel in kernels.items():
        if FULL in ops and (name == "sdpa" or type(kernel).full is not Kernel.full):
            found[Case(FULL, name, None)] = lambda t, kernel=kernel: kernel.full(*t[:3])  # type: ignore[misc]
        if name == "sdpa":
            continue  # its window materialises the mask: the reference for errors, not for times
        for w in windows:
            if WINDOW in ops:
                found[Case(WINDOW, name, w)] = lambda t, kernel=kernel, w=w: kernel.window(*t[:3], w)  # type: ignore[misc]
            if ADD in ops:
                found[Case(ADD, name, w)] = lambda t, kernel=kernel, w=w: kernel.window(*t[:3], w, add=t[3])  # type: ignore[misc]
            if SUBTRACT in ops:
                found[Case(SUBTRACT, name, w)] = lambda t, kernel=kernel, w=w: kernel.residual(*t, w)  # type: ignore[misc]
    return found


def fitting(kernels: dict[str, Kernel], shape: Shape, dtype: str, window: Window, budget: Budget) -> dict[str, Kernel]:
    """The kernels that take this shape, in the memory that is free; the others are left out with their reasons."""
    batch, heads, tokens, head_dim = shape
    sample = torch.empty(batch, tokens, heads, head_dim, device="cuda", dtype=DTYPES[dtype])
    fit = {}
    for name, kernel in kernels.items():
        reasons = kernel.not_supported_reasons(sample, window)
        free = torch.cuda.mem_get_info()[0]
        if name == "flex" and FLEX_MASK_BYTES * tokens**2 > free:
            reasons.append(f"its mask needs {FLEX_MASK_BYTES * tokens**2 / 2**30:.0f} GiB, {free / 2**30:.0f} are free")
        if reasons:
            budget.leave_out(name, f"{shape} {dtype}", "; ".join(reasons))
        else:
            fit[name] = kernel
    return fit


def measure(
    kernels: dict[str, Kernel],
    shape: Shape,
    dtype: str,
    windows: Sequence[Window],
    ops: Sequence[str],
    top: Peaks,
    budget: Budget,
) -> list[dict[str, Any]]:
    """The rows of one shape and dtype."""
    torch._dynamo.reset()  # compiled functions of other shapes count against its limit, and past it run uncompiled
    torch.cuda.empty_cache()
    sets = inputs(shape, DTYPES[dtype])
    runs = {}
    for case, launch in cases(fitting(kernels, shape, dtype, windows[0], budget), windows, ops).items():
        run = budget.prepared(case, f"{shape} {dtype}", partial(replayed, launch, sets))
        if run is not None:
            runs[case] = run
    rows = []
    for (op, name, window), us in times(runs, len(sets), repeats=15).items():
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
    """One line a row. The last three columns carry over to other GPUs better than microseconds: the floor's share of
    the time, the time over the fastest other library's at the same work, and over SDPA's full attention."""
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


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write kernels.json and kernels.png (--quick: kernels-quick.json)."""
    arguments = parser().parse_args(argv)
    names = arguments.kernels.split(",")
    unknown = [name for name in names if name not in KERNELS]
    if unknown:
        raise KernelError(f"there is no kernel {unknown[0]!r}; choose among {', '.join(KERNELS)}")
    picture = arguments.out / "kernels.png"
    if arguments.replot:
        result = json.loads(read_text(arguments.out / "kernels.json"))
        plot(result["curve"], result["device"], picture)
        print(f"written: {picture}")
        return
    if not torch.cuda.is_available():
        raise DitFastAttnError("kernels are measured on a CUDA GPU; there is none")
    budget = Budget(arguments.budget, exempt=REQUIRED)
    sample = torch.empty(1, 64, 1, 72, device="cuda", dtype=torch.bfloat16)
    kernels = {name: KERNELS[name]() for name in names}
    for name, kernel in list(kernels.items()):
        reasons = kernel.not_supported_reasons(sample, Window(left=8, right=8))
        if reasons:
            budget.leave_out(name, "everywhere", "; ".join(reasons))
            del kernels[name]

    top = peaks()
    device = torch.cuda.get_device_name()
    print(
        f"{device}: {top.flops / 1e12:.0f} TFLOP/s in a bf16 product, {top.bytes / 1e12:.2f} TB/s in a copy", flush=True
    )
    rows = []
    for dtype in ["bf16"] if arguments.quick else DTYPES:
        for shape in [QUICK] if arguments.quick else SHAPES:
            windows = [Window(left=shape[2] // part, right=shape[2] // part) for part in (8, 16)]
            rows += measure(kernels, shape, dtype, windows, (FULL, WINDOW, ADD, SUBTRACT), top, budget)
    print(table(rows))

    curve: list[dict[str, Any]] = []
    for shape in [] if arguments.quick else CURVE:
        curve += measure(kernels, shape, "bf16", [Window.default(shape[2])], (FULL, ADD), top, budget)
    result = {
        "command": command_line("kernels", argv),
        "device": device,
        "versions": versions(),
        "date": date.today().isoformat(),
        "product_tflops": round(top.flops / 1e12, 1),
        "copy_gbps": round(top.bytes / 1e9, 1),
        "seconds_compiling": {name: round(seconds, 1) for name, seconds in budget.spent.items()},
        "left_out": budget.left_out,
        "rows": rows,
    }
    if curve:
        result["curve"] = curve
        plot(curve, device, picture)
    file = arguments.out / ("kernels-quick.json" if arguments.quick else "kernels.json")
    write_text(file, json.dumps(result, indent=1) + "\n")
    print(f"written: {file}")
