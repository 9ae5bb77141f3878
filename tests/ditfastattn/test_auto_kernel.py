"""The kernel ``auto``: which one it takes, from what it measured, and when it does not measure."""

import json
import logging
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ditfastattn
from ditfastattn.kernels import auto, make_kernel, measured
from ditfastattn.kernels.auto import Auto, Choice, choose
from ditfastattn.kernels.base import Kernel, full_attention
from ditfastattn.kernels.sdpa import SDPA
from plans import Window

WINDOW = Window(left=2, right=3)
Q = torch.zeros(2, 8, 1, 8)


class Fake(SDPA):
    """The reference under another name; notes which kernel ran last."""

    runs: list[str] = []  # noqa: RUF012

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        Fake.runs.append(self.name)
        return super().window(q, k, v, window, add)

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise AssertionError("full attention is not the chosen kernel's")


class Quick(Fake):
    name = "quick"


class Slow(Fake):
    name = "slow"


class Failing(Fake):
    name = "failing"

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        raise RuntimeError("no such\n  instruction")


class Unfit(Fake):
    name = "unfit"

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        return ["it never fits"]


class FakeTimer:
    """Microseconds by the kernel that ran; full attention runs none of them."""

    def __init__(self, **us: float) -> None:
        self.us = us
        self.calls = 0

    def __call__(self, launch: Callable[[], object]) -> float:
        self.calls += 1
        Fake.runs.clear()
        launch()
        name = Fake.runs[-1] if Fake.runs else "full"
        # The first round is slow for all: a choice that counted it would go wrong.
        return 1000.0 * (10 - self.us[name]) if self.calls <= len(self.us) else self.us[name]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path))
    return tmp_path


def forget() -> None:
    """As in a new process."""
    measured._known.clear()


def times() -> FakeTimer:
    return FakeTimer(slow=7.0, quick=3.0, full=5.0)


def test_the_fastest_is_taken_and_full_attention_stays() -> None:
    kernel = choose(Q, WINDOW, [Slow, Quick, Unfit], times())
    assert kernel.name == "quick"
    assert kernel.report() == "quick (auto: quick 3 us, slow 7 us; full attention 5 us)"
    q, k, v, other = torch.randn(4, 2, 8, 1, 8, generator=torch.Generator().manual_seed(0)).unbind()
    Fake.runs.clear()
    expected = SDPA().window(q, k, v, WINDOW)
    assert torch.equal(kernel.window(q, k, v, WINDOW, add=other), expected + other)
    assert torch.equal(kernel.residual(q, k, v, other, WINDOW), other - expected)
    assert Fake.runs == ["quick", "quick"]
    assert torch.equal(kernel.full(q, k, v), full_attention(q, k, v))


def test_the_first_round_which_compiles_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "REPEATS", 1)
    assert (
        choose(Q, WINDOW, [Slow, Quick], times()).report() == "quick (auto: quick 3 us, slow 7 us; full attention 5 us)"
    )


def test_a_shape_is_measured_once() -> None:
    timer = times()
    choose(Q, WINDOW, [Slow, Quick], timer)
    calls = timer.calls
    assert calls == 3 * (auto.REPEATS + 1)
    assert choose(Q, WINDOW, [Slow, Quick], timer).report().startswith("quick (auto: quick 3 us")
    forget()  # from the file
    assert choose(Q, WINDOW, [Slow, Quick], timer).report().startswith("quick (auto: quick 3 us")
    assert timer.calls == calls


@pytest.mark.parametrize(
    ("q", "window", "kernels"),
    [
        (Q[:1], WINDOW, [Slow, Quick]),
        (Q.half(), WINDOW, [Slow, Quick]),
        (torch.zeros(2, 8, 3, 1, 8)[:, :, 0], WINDOW, [Slow, Quick]),  # strides of a fused projection
        (Q, Window(left=3, right=2), [Slow, Quick]),
        (Q, WINDOW, [Slow, Quick, Failing]),
    ],
    ids=["batch", "dtype", "strides", "window", "candidates"],
)
def test_what_differs_is_measured_anew(q: Tensor, window: Window, kernels: list[type[Kernel]]) -> None:
    timer = times()
    choose(Q, WINDOW, [Slow, Quick], timer)
    calls = timer.calls
    choose(q, window, kernels, timer)
    assert timer.calls > calls


def test_another_version_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = times()
    choose(Q, WINDOW, [Slow, Quick], timer)
    calls = timer.calls
    monkeypatch.setattr(auto, "versions", lambda: {"torch": "99"})
    choose(Q, WINDOW, [Slow, Quick], timer)
    assert timer.calls == 2 * calls


def test_one_that_fails_is_left_out_said_so_and_tried_again_next_time(folder: Path) -> None:
    kernel = choose(Q, WINDOW, [Failing, Slow, Quick], times())
    assert kernel.name == "quick"
    assert kernel.report().endswith("; full attention 5 us; failing failed: RuntimeError: no such instruction)")
    assert not list(folder.iterdir())
    assert choose(Q, WINDOW, [Failing], times()).report() == "failing (auto: the only one that fits)"
    assert choose(Q, WINDOW, [Failing, type("Worse", (Failing,), {"name": "worse"})], times()).name == "sdpa"


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(auto, "_captured", lambda q: True)
    timer = times()
    assert choose(Q, WINDOW, [Slow, Quick], timer).name == "slow"  # the first that fits
    assert timer.calls == 0 and not list(folder.iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("DITFASTATTN_CACHE", str(folder))
    assert choose(Q, WINDOW, [Slow, Quick], timer).name == "quick"


@pytest.mark.parametrize("damage", ["", "[]", '{"version": 0, "entries": {}}', '{"version": 1}', "entry"])
def test_a_damaged_file_is_ignored_with_a_warning(damage: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    choose(Q, WINDOW, [Slow, Quick], times())
    file = folder / "auto-kernel-2.json"
    content = json.loads(file.read_text())
    if damage == "entry":
        content["entries"] = {key: entry | {"us": {"quick": "fast"}} for key, entry in content["entries"].items()}
        damage = json.dumps(content)
    file.write_text(damage)
    forget()
    timer = times()
    with caplog.at_level(logging.WARNING):
        assert choose(Q, WINDOW, [Slow, Quick], timer).name == "quick"
    assert timer.calls and "ignored" in caplog.text
    forget()
    timer = times()
    assert choose(Q, WINDOW, [Slow, Quick], timer).name == "quick"  # the file was mended
    assert not timer.calls


def test_a_folder_that_cannot_be_written_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("DITFASTATTN_CACHE", str(folder / "file"))
    timer = times()
    with caplog.at_level(logging.WARNING):
        choose(Q, WINDOW, [Slow, Quick], timer)
        calls = timer.calls
        choose(Q, WINDOW, [Slow, Quick], timer)
    assert timer.calls == calls and "for this process only" in caplog.text


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    choose(Q, WINDOW, [Slow, Quick], times())
    assert torch.equal(torch.get_rng_state(), before)


def test_other_inputs_are_chosen_for_anew() -> None:
    kernel = choose(Q, WINDOW, [Slow, Quick], times())
    assert not kernel.not_supported_reasons(Q, WINDOW)
    (reason,) = kernel.not_supported_reasons(torch.zeros(4, 8, 1, 8), WINDOW)
    assert "chosen for 2x8x1x8" in reason and "not for 4x8x1x8" in reason


def test_on_a_cpu_auto_is_the_reference_and_nothing_is_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "measure", None)
    for dtype in (torch.float32, torch.float16):
        assert type(make_kernel("auto", Q.to(dtype), WINDOW)) is SDPA
    assert not list(folder.iterdir())


def test_the_summary_says_what_was_measured(pipe: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from small_models import random_plan, sample

    def chosen(name: str, q: Tensor, window: Window) -> Kernel:
        return choose(q, window, [Slow, Quick], times())

    monkeypatch.setattr("ditfastattn.session.make_kernel", chosen)
    with ditfastattn.apply(pipe, random_plan(pipe, seed=1)) as session:
        sample(pipe)
    assert "kernel           quick (auto: quick 3 us, slow 7 us; full attention 5 us)" in str(session.summary())


def test_the_reference_is_measured_on_short_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of a video; a mask of many tokens would be as large as all that a window saves."""
    assert auto.candidates_for(torch.empty(2048, 16, 1, 8)) == (*auto.CANDIDATES, SDPA)
    assert auto.candidates_for(torch.empty(2, 65, 1, 8)) == auto.CANDIDATES
    monkeypatch.setattr(auto, "CANDIDATES", (Slow,))
    us = cycle([7.0, 2.0, 1.0])  # in the order of the launches
    found = choose(Q, WINDOW, timer=lambda _: next(us)).report()
    assert found == "sdpa (auto: sdpa 2 us, slow 7 us; full attention 1 us)"
    assert choose(torch.zeros(2, 65, 1, 8), WINDOW).report() == "slow (auto: the only one that fits)"


@pytest.mark.gpu
def test_the_sites_of_a_video_are_chosen_for_apart(folder: Path) -> None:
    kernels = {}
    for shape in ((32, 405, 16, 72), (810, 16, 16, 72)):
        q = torch.empty(shape, device="cuda", dtype=torch.bfloat16)
        kernel = make_kernel("auto", q, Window.default(shape[1]))
        assert isinstance(kernel, Auto)
        kernels[shape[1]] = kernel.choice.us
    assert "sdpa" in kernels[16] and "sdpa" not in kernels[405] and "triton" in kernels[16].keys() & kernels[405].keys()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window.default(1024)
    generator = torch.Generator().manual_seed(0)
    q, k, v, other = (torch.randn(2, 1024, 4, 72, generator=generator).to("cuda", dtype) for _ in range(4))
    state = torch.cuda.get_rng_state()
    kernel = make_kernel("auto", q, window)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert isinstance(kernel, Auto) and {"triton", "varlen", auto.FULL} <= set(kernel.choice.us)
    assert all(0.5 < us < 2000 for us in kernel.choice.us.values()), kernel.report()
    assert kernel.choice.us[kernel.name] == min(us for name, us in kernel.choice.us.items() if name != auto.FULL)
    expected = SDPA().window(q.double(), k.double(), v.double(), window) + other.double()
    error = (kernel.window(q, k, v, window, add=other).double() - expected).norm() / expected.norm()
    assert float(error) < 5e-3
    assert torch.equal(kernel.full(q, k, v), full_attention(q, k, v))
    monkeypatch.setattr(auto, "measure", None)
    forget()
    if not kernel.choice.failed:
        again = make_kernel("auto", q, window)
        assert isinstance(again, Auto) and again.choice == kernel.choice  # from the file


@pytest.mark.gpu
def test_nothing_is_measured_in_a_real_capture(folder: Path) -> None:
    q = torch.zeros(1, 256, 2, 64, device="cuda", dtype=torch.float16)
    for candidate in auto.CANDIDATES:
        candidate().not_supported_reasons(q, WINDOW)  # libraries are imported before a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel = make_kernel("auto", q, Window.default(256))
        torch.zeros(1, device="cuda")
    assert isinstance(kernel, Auto) and kernel.name == "triton"
    assert kernel.choice == Choice("triton", note="not measured, as a CUDA graph was being captured")
    assert not list(folder.iterdir())
