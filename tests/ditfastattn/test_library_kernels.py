"""Kernels of other libraries: each says how to get it, and agrees with the reference where it runs.

On a CPU a stand-in takes the library's place: it shows what the library would be called with.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ditfastattn.errors import KernelError
from ditfastattn.kernels import flash, make_kernel, xformers
from ditfastattn.kernels.base import Kernel, full_attention
from ditfastattn.kernels.flash import FlashKernel
from ditfastattn.kernels.flash2 import Flash2
from ditfastattn.kernels.flash3 import Flash3
from ditfastattn.kernels.flash4 import Flash4
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.kernels.varlen import Varlen
from ditfastattn.kernels.xformers import XFormers
from plans import Window

FLASH: list[type[FlashKernel]] = [Flash2, Flash3, Flash4, Varlen]
LIBRARIES: list[type[Kernel]] = [XFormers, *FLASH]
WINDOW = Window(left=5, right=9)
HALF = torch.zeros(1, 4, 1, 8, dtype=torch.float16)


class StandIn:
    """Attention in the library's place, by the reference; keeps the sides that it was given."""

    def __init__(self, unlimited: tuple[int | None, int | None], pair: bool = False) -> None:
        self.unlimited = unlimited
        self.pair = pair
        self.sides: list[Any] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, window_size: Any) -> Any:
        self.sides.append(window_size)
        if window_size == self.unlimited:
            out = full_attention(q, k, v)
        else:
            out = SDPA().window(q, k, v, Window(left=window_size[0], right=window_size[1]))
        return (out, None) if self.pair else out

    def packed(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *rest: Any, window_size: Any) -> Tensor:
        """varlen_attn's way: sequences one after the other in (T, H, D), found by their first tokens."""
        starts_k, longest_q, longest_k = rest
        assert torch.equal(starts, starts_k) and starts.dtype == torch.int32
        ends = starts[1:].tolist()
        parts = [slice(begin, end) for begin, end in zip(starts.tolist(), ends, strict=False)]
        assert {part.stop - part.start for part in parts} == {longest_q} == {longest_k}
        return torch.cat([self(q[None, p], k[None, p], v[None, p], window_size=window_size)[0] for p in parts])


def put(monkeypatch: pytest.MonkeyPatch, library: type[FlashKernel], function: Any) -> None:
    module = ModuleType(library.module)
    setattr(module, library.function, function)
    parts = library.module.split(".")
    if not library.module.startswith("torch"):
        for count in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count])))
    monkeypatch.setitem(sys.modules, library.module, module)


@pytest.mark.parametrize("pair", [False, True], ids=["attention only", "with log-sum-exp"])
@pytest.mark.parametrize("library", FLASH, ids=lambda library: library.name)
def test_a_library_is_called_with_the_window_as_given(
    library: type[FlashKernel], pair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandIn(library.unlimited, pair and library is not Varlen)
    put(monkeypatch, library, stand_in.packed if library is Varlen else stand_in)
    packed = torch.randn(2, 17, 4, 3, 16, generator=torch.Generator().manual_seed(0))
    q, k, v, other = packed.unbind(2)  # strides of a fused projection
    kernel = library()
    expected = SDPA().window(q, k, v, WINDOW)
    torch.testing.assert_close(kernel.window(q, k, v, WINDOW), expected)
    torch.testing.assert_close(kernel.window(q, k, v, WINDOW, add=other), expected + other)
    torch.testing.assert_close(kernel.residual(q, k, v, other, WINDOW), other - expected)
    assert set(stand_in.sides) == {(5, 9)}
    stand_in.sides.clear()
    torch.testing.assert_close(kernel.full(q, k, v), full_attention(q, k, v))
    assert set(stand_in.sides) == {(None, None) if library is Flash4 else (-1, -1)}


@pytest.mark.parametrize("library", FLASH, ids=lambda library: library.name)
def test_a_loaded_library_still_states_what_it_needs(
    library: type[FlashKernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, library, lambda: None)
    reasons = library().not_supported_reasons(torch.zeros(1, 4, 1, 20), WINDOW)
    assert [sum(word in reason for reason in reasons) for word in ("CUDA GPU", "float16", "head_dim 20")] == [1, 1, 1]
    assert library().not_supported_reasons(HALF, WINDOW) == ["a CUDA GPU is needed, the tensors are on cpu"]


def test_the_gpu_decides_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in (Flash2, Flash3, Flash4):
        put(monkeypatch, library, lambda: None)

    def fits(library: type[FlashKernel], capability: tuple[int, int], head_dim: int) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        q: Any = SimpleNamespace(  # no tensor can be made on a GPU that is not there
            shape=(1, 4, 1, head_dim), device=torch.device("cuda"), dtype=torch.bfloat16, stride=lambda dim: 1
        )
        return not library().not_supported_reasons(q, WINDOW)

    for capability, names in {(7, 5): "", (8, 0): "2", (9, 0): "234", (10, 0): "24", (12, 0): "2"}.items():
        found = {library.name for library in (Flash2, Flash3, Flash4) if fits(library, capability, 72)}
        assert found == {f"flash{name}" for name in names}, capability
    assert fits(Flash4, (9, 0), 256) and not fits(Flash4, (10, 0), 256) and not fits(Flash2, (9, 0), 264)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_a_cpu_tensor_is_refused(library: type[Kernel]) -> None:
    assert library().not_supported_reasons(torch.zeros(1, 4, 1, 8, dtype=torch.float16), WINDOW)


@pytest.mark.parametrize("library", FLASH, ids=lambda library: library.name)
def test_a_missing_library_says_how_to_get_it(library: type[FlashKernel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library.module, None)  # importing it raises ModuleNotFoundError
    with pytest.raises(KernelError, match=rf"{library.library} is not installed: pip install"):
        make_kernel(library.name, HALF, WINDOW)


def test_missing_xformers_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    xformers.load.cache_clear()
    monkeypatch.setattr(xformers, "find_spec", lambda name: None)
    assert any("pip install xformers" in reason for reason in XFormers().not_supported_reasons(HALF, WINDOW))


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'cutlass'", name="cutlass"), OSError("libcudart.so.12: not found")]
)
def test_a_broken_library_says_why_and_how_to_mend_it(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(flash, "import_module", broken)
    (reason,) = (r for r in Flash4().not_supported_reasons(HALF, WINDOW) if "FlashAttention" in r)
    assert "cannot be loaded" in reason and str(error) in reason and "pip install 'flash-attn-4[cu13]'" in reason


def test_flash_attn_4_alone_is_not_taken_for_flash_attn_2(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, Flash4, lambda: None)  # makes flash_attn importable, without flash_attn_interface
    sys.modules["flash_attn"].__path__ = []  # type: ignore[attr-defined]
    assert any("FlashAttention-2 is not installed" in r for r in Flash2().not_supported_reasons(HALF, WINDOW))
    assert not any("install" in r for r in Flash4().not_supported_reasons(HALF, WINDOW))


@pytest.mark.gpu
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 256, 3, 64), (1, 333, 2, 72), (2, 129, 1, 128)])
def test_against_the_reference(library: type[Kernel], dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, other = (torch.randn(shape, generator=generator).to("cuda", dtype) for _ in range(4))
    kernel = library()
    tokens = shape[1]
    for window in (WINDOW, Window(left=0, right=0), Window(left=tokens, right=tokens), Window(left=7, right=0)):
        reasons = kernel.not_supported_reasons(q, window)
        if reasons:
            pytest.skip("; ".join(reasons))
        expected = SDPA().window(q.double(), k.double(), v.double(), window)
        error = (kernel.window(q, k, v, window).double() - expected).norm() / expected.norm()
        assert float(error) < 5e-3, window
        both = expected + other.double()
        error = (kernel.window(q, k, v, window, add=other).double() - both).norm() / both.norm()
        assert float(error) < 5e-3, window
    full = full_attention(q.double(), k.double(), v.double())
    assert float((kernel.full(q, k, v).double() - full).norm() / full.norm()) < 5e-3


@pytest.mark.gpu
def test_a_wide_dtype_is_refused() -> None:
    q = torch.zeros(1, 4, 1, 8, device="cuda")
    for library in LIBRARIES:
        assert any("float16" in reason or "install" in reason for reason in library().not_supported_reasons(q, WINDOW))
