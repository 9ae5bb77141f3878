"""The fused operators of a prepared block, against their formulas in float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="Triton is not installed (pip install triton)")

from ditfastattn.kernels.block_ops import linear_gelu, modulated_norm, residual_norm

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if ON_GPU else "cpu"
kernel_runs = pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="runs within test_in_the_interpreter")
DTYPES = [torch.float32, torch.float16, torch.bfloat16] if ON_GPU else [torch.float32]
SHAPES = [(4, 5, 1152), (2, 7, 48), (2, 3, 1000)]


@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="the kernels run here as they are")
def test_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x and an update (B, N, C), and shift, scale and gate as slices of one modulation (B, 6, C)."""
    generator = torch.Generator().manual_seed(0)
    batch, _, width = shape
    x = torch.randn(shape, generator=generator) * 3 + 1
    update, modulation = torch.randn(shape, generator=generator), torch.randn((batch, 6, width), generator=generator)
    modulation = modulation.to(DEVICE, dtype)
    return (x.to(DEVICE, dtype), update.to(DEVICE, dtype), *(modulation[:, i : i + 1] for i in (0, 1, 5)))


def formula(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    x, shift, scale = x.double(), shift.double(), scale.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * (1 + scale) + shift


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected).norm() / expected.norm())


@kernel_runs
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("half", [False, True])
def test_norms(shape: tuple[int, ...], dtype: torch.dtype, half: bool) -> None:
    x, update, shift, scale, gate = inputs(shape, dtype)
    allowed = 2 * torch.finfo(dtype).eps
    assert error(modulated_norm(x, shift, scale, 1e-6), formula(x, shift, scale, 1e-6)) < allowed
    rows = shape[0] // 2
    update = update[rows:] if half else update
    whole = torch.cat([update, update]) if half else update
    summed, normed = residual_norm(x, update, gate, shift, scale, 1e-6)
    assert error(summed, x.double() + gate.double() * whole.double()) < allowed
    assert error(normed, formula(summed, shift, scale, 1e-6)) < allowed


@kernel_runs
def test_rows_that_do_not_vary_stay_finite() -> None:
    x, _, shift, scale, _ = inputs((2, 3, 1000), torch.float32)
    normed = modulated_norm(torch.full_like(x, 1e4), shift, scale, 1e-6)
    torch.testing.assert_close(normed, shift.expand_as(normed), rtol=0, atol=1e-2)


@kernel_runs
def test_a_slice_of_rows_is_read_where_it_lies() -> None:
    x, _, shift, scale, _ = inputs((4, 5, 48), torch.float32)
    ours = modulated_norm(x[2:], shift[2:], scale[2:], 1e-6)
    assert error(ours, formula(x[2:], shift[2:], scale[2:], 1e-6)) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_gelu(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in ((2, 5, 64), (96, 64), (96,)))
    expected = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    assert error(linear_gelu(x, weight, bias), expected) < 4 * torch.finfo(dtype).eps


@kernel_runs
def test_torch_compile_sees_single_operators() -> None:
    x, update, shift, scale, gate = inputs((2, 7, 48), torch.float32)
    tests = ["test_schema", "test_faketensor"]
    torch.library.opcheck(modulated_norm, (x, shift, scale, 1e-6), test_utils=tests)
    torch.library.opcheck(residual_norm, (x, update, gate, shift, scale, 1e-6), test_utils=tests)
    weight, bias = torch.randn(96, 48, device=DEVICE), torch.randn(96, device=DEVICE)
    torch.library.opcheck(linear_gelu, (x, weight, bias), test_utils=tests)
