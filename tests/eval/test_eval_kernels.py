"""The kernel benchmark's own arithmetic, what it leaves out, and its picture; no time is measured here."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from ditfastattn.errors import DitFastAttnError, KernelError
from ditfastattn.kernels import KERNELS
from eval.kernel_plot import COLOURS
from eval.kernels import REQUIRED, cases, main, table
from eval.timing import ADD, FULL, SUBTRACT, WINDOW, Budget, Case, Peaks, Work
from plans import Window

NARROW, WIDE = Window(left=16, right=16), Window(left=32, right=32)


def row(op: str, kernel: str, us: float, tokens: int = 256) -> dict[str, object]:
    window = None if op == FULL else [tokens // 8] * 2
    return {"op": op, "kernel": kernel, "shape": [2, 16, tokens, 72], "dtype": "bf16", "window": window, "us": us,
            "tflops": 1.0, "gbps": 1.0, "floor_us": us / 4}  # fmt: skip


class Clock:
    """Every look takes a second more."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


def test_a_kernel_that_takes_too_long_to_compile_holds_up_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    budget = Budget(1.5, exempt=REQUIRED, clock=Clock())
    made: Counter[str] = Counter()

    def prepare(kernel: str) -> object:
        return budget.prepared(Case(WINDOW, kernel, WIDE), "there", lambda: made.update([kernel]) or kernel)

    assert [prepare("flex") for _ in range(4)] == ["flex", "flex", None, None]  # a second each
    assert [prepare("triton") for _ in range(4)] == ["triton"] * 4
    assert made == {"flex": 2, "triton": 4}
    (entry,) = budget.left_out
    assert entry["kernel"] == "flex" and "1.5 s for compiling are used up" in entry["why"]
    assert capsys.readouterr().out.count("left out") == 1


def test_a_kernel_that_fails_is_left_out_with_its_reason() -> None:
    budget = Budget(60)

    def fail() -> None:
        raise torch.cuda.OutOfMemoryError("tried to allocate\n  96 GiB")

    assert budget.prepared(Case(ADD, "flex", WIDE), "(2, 16, 32768, 72) bf16", fail) is None
    (entry,) = budget.left_out
    assert entry["where"] == "(2, 16, 32768, 72) bf16, window + residual"
    assert entry["why"] == "OutOfMemoryError: tried to allocate 96 GiB"


def test_what_is_timed() -> None:
    found = cases({name: kernel() for name, kernel in KERNELS.items()}, [WIDE, NARROW], (FULL, WINDOW, ADD, SUBTRACT))
    full = {case.kernel for case in found if case.op == FULL}
    assert full == set(KERNELS) - {"flex", "triton"}  # these two leave full attention to SDPA
    for op in (WINDOW, ADD, SUBTRACT):
        for window in (WIDE, NARROW):
            assert {case.kernel for case in found if case[::2] == (op, window)} == set(KERNELS) - {"sdpa"}


def test_each_launch_is_of_its_own_kernel_op_and_window() -> None:
    tensors = torch.randn(4, 1, 64, 1, 8, generator=torch.Generator().manual_seed(0)).unbind()
    flex = KERNELS["flex"]()
    found = cases({"flex": flex}, [WIDE, NARROW], (WINDOW, ADD, SUBTRACT))
    q, k, v, other = tensors
    for (op, _, window), launch in found.items():
        assert window is not None
        out = flex.window(q, k, v, window)
        expected = {WINDOW: out, ADD: out + other, SUBTRACT: other - out}[op]
        assert torch.equal(launch(tensors), expected)


def test_the_floor_is_the_larger_of_two() -> None:
    work = Work.of(ADD, (1, 1, 4, 8), Window(left=1, right=0))  # 7 of 16 pairs, five tensors of 32 numbers
    assert work == Work(flops=4 * 7 * 8, bytes=5 * 32 * 2)
    assert work.floor_us(Peaks(flops=1e6, bytes=1e9)) == pytest.approx(224)
    assert work.floor_us(Peaks(flops=1e9, bytes=1e6)) == pytest.approx(320)


def test_ratios_to_the_fastest_library_and_to_full_attention() -> None:
    rows = [row(FULL, "sdpa", 20), row(ADD, "triton", 5), row(ADD, "varlen", 40), row(ADD, "flash3", 10)]
    lines = [line.split() for line in table(rows).splitlines()[1:]]
    assert [line[-3:] for line in lines] == [
        ["25%", "nan", "1.00"],
        ["25%", "0.50", "0.25"],
        ["25%", "4.00", "2.00"],
        ["25%", "0.25", "0.50"],  # the fastest library, beside the next
    ]


def test_the_picture_is_drawn_again_from_the_file(tmp_path: Path) -> None:
    curve = [row(FULL, "sdpa", 20), row(FULL, "sdpa", 50, 512)]
    curve += [row(ADD, name, 10 + 10 * (tokens > 256), tokens) for name in COLOURS for tokens in (256, 512)]
    (tmp_path / "kernels.json").write_text(json.dumps({"curve": curve, "device": "a GPU"}))
    main(["--replot", "--out", str(tmp_path)])
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")


def test_every_kernel_has_a_colour() -> None:
    assert set(COLOURS) == set(KERNELS)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DitFastAttnError, match="CUDA GPU"):
        main([])
    with pytest.raises(KernelError, match="no kernel 'warp'"):
        main(["--kernels", "sdpa,warp"])


@pytest.mark.gpu
def test_one_shape_on_the_gpu(tmp_path: Path) -> None:
    main(["--quick", "--kernels", "sdpa,varlen,triton,flex", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "kernels-quick.json").read_text())
    assert {r["kernel"] for r in result["rows"]} == {"sdpa", "varlen", "triton", "flex"}, result["left_out"]
    assert all(r["us"] > 0 for r in result["rows"])
