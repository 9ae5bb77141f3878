"""Kernels of other libraries: each says how to get it, and agrees with the reference where it runs."""

import pytest
import torch

from ditfastattn.kernels import flash3, varlen, xformers
from ditfastattn.kernels.base import Kernel, full_attention
from ditfastattn.kernels.sdpa import SDPA
from plans import Window

LIBRARIES: list[type[Kernel]] = [xformers.XFormers, varlen.Varlen, flash3.Flash3]
WINDOW = Window(left=5, right=9)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_a_cpu_tensor_is_refused(library: type[Kernel]) -> None:
    assert library().not_supported_reasons(torch.zeros(1, 4, 1, 8, dtype=torch.float16), WINDOW)


@pytest.mark.parametrize(
    ("library", "module", "command"),
    [(xformers.XFormers, xformers, "pip install xformers"), (flash3.Flash3, flash3, "pip install tokenspeed-fa3")],
)
def test_a_missing_library_says_how_to_get_it(
    library: type[Kernel], module: object, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.load.cache_clear()  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    reasons = library().not_supported_reasons(torch.zeros(1, 4, 1, 8, dtype=torch.float16), WINDOW)
    assert any(command in reason for reason in reasons)


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
