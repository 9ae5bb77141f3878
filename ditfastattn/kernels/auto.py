"""The kernel ``auto``: the fastest for window + residual, measured once for each shape on the GPU at hand.

Full attention is not chosen: it stays with the very call that diffusers makes, so that an all-FULL plan changes no bit.
Not measured are ``sdpa`` on more than a few tokens, since its window computes every score and a mask of N x N besides,
and ``flex``, which torch.compile takes many seconds to build for each shape and which was never the fastest where we
measured it.
"""

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor

from ditfastattn.kernels.base import Kernel, full_attention
from ditfastattn.kernels.flash2 import Flash2
from ditfastattn.kernels.flash3 import Flash3
from ditfastattn.kernels.flash4 import Flash4
from ditfastattn.kernels.measured import Measured
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.kernels.triton import Triton
from ditfastattn.kernels.varlen import Varlen
from ditfastattn.kernels.versions import versions
from ditfastattn.kernels.xformers import XFormers
from ditfastattn.version import VERSION
from plans import Window

log = logging.getLogger(__name__)

CANDIDATES: tuple[type[Kernel], ...] = (
    Triton,
    XFormers,
    Flash3,
    Flash2,
    Varlen,
    Flash4,
)  # the first where none is timed
SHORT = 64  # tokens: between the frames of a video a window spares little, and the reference may be as fast
FULL = "full attention"
LAUNCHES, REPEATS = 8, 5
HEAD_START = 5_000_000  # GPU cycles, about 3 ms: longer than the host takes to launch
MEASURED = Measured("auto-kernel", version=2)  # raised with our kernels: old times say nothing about new ones

Timer = Callable[[Callable[[], object]], float]  # microseconds of one call of a launch


@dataclass(frozen=True)
class Choice:
    """What measuring gave. ``us``: microseconds of window + residual by kernel, and of full attention by torch."""

    kernel: str
    us: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # what a kernel raised while it was measured
    note: str = ""  # why nothing was measured

    def __str__(self) -> str:
        """Fastest first: "auto: triton 24 us, flash3 38 us; full attention 26 us"."""
        windows = sorted((us, name) for name, us in self.us.items() if name != FULL)
        parts = [", ".join(f"{name} {us:,.0f} us" for us, name in windows), self.note]
        parts += [f"{FULL} {self.us[FULL]:,.0f} us"] if FULL in self.us else []
        parts += [f"{name} failed: {reason}" for name, reason in self.failed.items()]
        return "auto: " + "; ".join(part for part in parts if part)


class Auto(Kernel):
    """The chosen kernel's window and residual, under its name, and torch's full attention."""

    def __init__(self, kernel: Kernel, choice: Choice, q: Tensor, window: Window) -> None:
        self.name = kernel.name
        self.choice = choice
        self._kernel = kernel
        self._made_for = _place(q, window)

    def report(self) -> str:
        return f"{self.name} ({self.choice})"

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        """Other inputs than it was chosen for are refused too, so that they are measured anew."""
        if _place(q, window) != self._made_for:
            return [f"{self.name} was chosen for {self._made_for}, not for {_place(q, window)}"]
        return self._kernel.not_supported_reasons(q, window)

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        return self._kernel.window(q, k, v, window, add)

    def residual(
        self, q: Tensor, k: Tensor, v: Tensor, full: Tensor, window: Window, out: Tensor | None = None
    ) -> Tensor:
        return self._kernel.residual(q, k, v, full, window, out)


def candidates_for(q: Tensor) -> tuple[type[Kernel], ...]:
    """Kernels worth measuring for inputs like ``q`` (B, N, H, D)."""
    return (*CANDIDATES, SDPA) if q.shape[1] <= SHORT else CANDIDATES


def choose(
    q: Tensor, window: Window, candidates: Sequence[type[Kernel]] | None = None, timer: Timer | None = None
) -> Kernel:
    """The fastest candidate for inputs like ``q`` (B, N, H, D); the reference if none fits or none runs.

    The first call for a shape measures, unless only one fits. Nothing is measured while a CUDA graph is captured: the
    first candidate that fits is then taken, and nothing remembered.
    """
    kernels = [candidate() for candidate in (candidates_for(q) if candidates is None else candidates)]
    fitting = {kernel.name: kernel for kernel in kernels if not kernel.not_supported_reasons(q, window)}
    if not fitting:
        return SDPA()
    choice = _known(q, window, fitting)
    if choice is None and len(fitting) == 1:
        choice = Choice(next(iter(fitting)), note="the only one that fits")
    elif choice is None and _captured(q):
        choice = Choice(next(iter(fitting)), note="not measured, as a CUDA graph was being captured")
    elif choice is None:
        with torch.cuda.device_of(q):  # the events belong to the current GPU
            choice = measure(list(fitting.values()), q, window, timer or gpu_microseconds)
        # What stopped a kernel (memory, say) may be gone in the next process: it is tried again there.
        MEASURED.put(_key(q, window, fitting), asdict(choice), on_disk=not choice.failed)
        log.info("%s", choice)
    return Auto(fitting.get(choice.kernel) or SDPA(), choice, q, window)


def given(kernel: Kernel, q: Tensor, window: Window) -> Kernel:
    """What :func:`choose` returns where another process has chosen ``kernel``."""
    return Auto(kernel, Choice(kernel.name, note=f"{kernel.name}, chosen before"), q, window)


def measure(kernels: Sequence[Kernel], q: Tensor, window: Window, timer: Timer) -> Choice:
    """Times window + residual by each kernel on random inputs of ``q``'s shape and strides; medians, interleaved."""
    generator = torch.Generator(q.device).manual_seed(0)  # of its own: the caller's random numbers stay what they are

    def random() -> Tensor:
        return torch.empty_strided(q.shape, q.stride(), dtype=q.dtype, device=q.device).normal_(generator=generator)

    query, key, value, residual = (random() for _ in range(4))
    launches: dict[str, Callable[[], object]] = {
        kernel.name: partial(kernel.window, query, key, value, window, residual) for kernel in kernels
    }
    launches[FULL] = partial(full_attention, query, key, value)
    times: dict[str, list[float]] = {name: [] for name in launches}
    failed: dict[str, str] = {}
    for repeat in range(REPEATS + 1):
        for name in [name for name in launches if name not in failed]:
            try:
                us = timer(launches[name])
            except Exception as error:  # each library has its own exceptions
                failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
                continue
            if repeat:  # the first round compiles and warms up
                times[name].append(us)
    medians = {name: round(statistics.median(values), 2) for name, values in times.items() if name not in failed}
    windows = [name for name in medians if name != FULL]
    best = min(windows, key=lambda name: medians[name]) if windows else SDPA.name
    return Choice(best, us=medians, failed=failed)


def gpu_microseconds(launch: Callable[[], object]) -> float:
    """The GPU's time for one launch of several in a row, without the host's: they queue up behind a short sleep."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(HEAD_START)
    begin.record()
    for _ in range(LAUNCHES):
        launch()
    end.record()
    end.synchronize()
    return 1000 * begin.elapsed_time(end) / LAUNCHES


def _captured(q: Tensor) -> bool:
    return q.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _place(q: Tensor, window: Window) -> str:
    shape = "x".join(str(size) for size in q.shape)
    strides = "" if q.is_contiguous() else f" strides {'x'.join(str(stride) for stride in q.stride())}"
    dtype = str(q.dtype).removeprefix("torch.")
    return f"{shape}{strides} {dtype} on {q.device}, window {window.left},{window.right}"


def _key(q: Tensor, window: Window, fitting: dict[str, Kernel]) -> str:
    """What a choice holds for: the inputs, the GPU, who was asked, and every version."""
    device = torch.cuda.get_device_name(q.device) if q.device.type == "cuda" else q.device.type
    place = _place(q, window).replace(f" on {q.device}", "")
    packages = ", ".join(f"{name} {version}" for name, version in {"ditfastattn": VERSION, **versions()}.items())
    return f"{device} | {place} | {', '.join(fitting)} | {packages}"


def _known(q: Tensor, window: Window, fitting: dict[str, Kernel]) -> Choice | None:
    entry = MEASURED.get(_key(q, window, fitting))
    try:
        choice = Choice(**entry) if entry else None
        if choice and (choice.kernel not in (*fitting, SDPA.name) or not str(choice)):
            raise ValueError(f"kernel {choice.kernel}")
        return choice
    except (TypeError, ValueError, AttributeError) as error:
        log.warning("%s: an entry is ignored (%s): its kernels are measured again", MEASURED.file, error)
        return None
