"""Every kernel against softmax attention written out in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ditfastattn.errors import KernelError
from ditfastattn.kernels import KERNELS, make_kernel
from ditfastattn.kernels.base import Kernel
from plans import Window

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def formula(q: Tensor, k: Tensor, v: Tensor, window: Window | None) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v, one query at a time, in float64. (B, N, H, D) -> (B, N, H, D)."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.empty_like(q)
    tokens = q.shape[1]
    for i in range(tokens):
        low, high = (0, tokens) if window is None else (max(0, i - window.left), min(tokens, i + window.right + 1))
        scores = torch.einsum("bhd,bnhd->bhn", q[:, i], k[:, low:high]) / math.sqrt(q.shape[3])
        out[:, i] = torch.einsum("bhn,bnhd->bhd", scores.softmax(-1), v[:, low:high])
    return out


def relative_error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def inputs(batch: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, tokens, heads, head_dim, generator=generator).to(dtype) for _ in range(4)]


def fitting(name: str, q: Tensor, window: Window) -> Kernel:
    """The kernel, or a skipped test if it does not run on this device."""
    reasons = KERNELS[name]().not_supported_reasons(q, window)
    if reasons:
        pytest.skip("; ".join(reasons))
    return make_kernel(name, q, window)


def check(name: str, tensors: list[Tensor], window: Window) -> None:
    q, k, v, added = tensors
    dtype = q.dtype
    kernel = fitting(name, q, window)
    expected = formula(q, k, v, window)
    full = formula(q, k, v, None)
    tolerance = TOLERANCE[dtype]
    assert relative_error(kernel.window(q, k, v, window), expected) < tolerance
    assert relative_error(kernel.window(q, k, v, window, add=added), expected + added.double()) < tolerance
    assert relative_error(kernel.full(q, k, v), full) < tolerance
    # The residual is a difference of near-equal numbers: its error is bounded by theirs, not by its own size.
    residual = kernel.residual(q, k, v, full.to(dtype), window).double()
    assert float((residual - (full - expected)).norm() / (full.norm() + expected.norm())) < tolerance


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_against_the_formula(name: str, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 40))
    shape = (
        data.draw(st.integers(1, 3)),
        tokens,
        data.draw(st.integers(1, 3)),
        data.draw(st.sampled_from([8, 16, 24, 72])),
    )
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    window = Window(left=data.draw(st.integers(0, tokens)), right=data.draw(st.integers(0, tokens)))
    check(name, inputs(*shape, dtype, data.draw(st.integers(0, 99))), window)


@pytest.mark.parametrize("name", KERNELS)
def test_window_of_nothing_and_of_everything(name: str) -> None:
    q, k, v, _ = inputs(2, 33, 2, 16, torch.float32, seed=0)
    alone = Window(left=0, right=0)
    assert torch.equal(fitting(name, q, alone).window(q, k, v, alone), v)  # each query sees its own key only
    everything = Window(left=33, right=33)
    kernel = fitting(name, q, everything)
    assert relative_error(kernel.window(q, k, v, everything), formula(q, k, v, None)) < 1e-5


@pytest.mark.parametrize("name", KERNELS)
def test_left_and_right_are_not_swapped(name: str) -> None:
    q, k, v, _ = inputs(1, 20, 1, 16, torch.float32, seed=1)
    past = Window(left=5, right=0)
    out = fitting(name, q, past).window(q, k, v, past)
    v[:, 10:] += 100  # keys after query 9 must not reach it
    assert torch.equal(fitting(name, q, past).window(q, k, v, past)[:, :10], out[:, :10])


@pytest.mark.parametrize("name", KERNELS)
def test_slices_of_packed_qkv(name: str) -> None:
    packed = torch.randn(2, 17, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    q, k, v = packed.unbind(2)  # strides of a fused projection
    window = Window(left=3, right=6)
    assert relative_error(fitting(name, q, window).window(q, k, v, window), formula(q, k, v, window)) < 1e-5


def test_unknown_kernel_is_named_with_the_known() -> None:
    q = torch.zeros(1, 4, 1, 8)
    with pytest.raises(KernelError, match=r"no kernel 'fast'.*auto, sdpa, flex, triton"):
        make_kernel("fast", q, Window(left=1, right=1))


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 256, 3, 64), (2, 1024, 2, 72), (1, 333, 2, 72), (2, 129, 1, 128)])
def test_on_the_gpu(name: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    tokens = shape[1]
    for window in (
        Window.default(tokens),
        Window(left=0, right=0),
        Window(left=tokens, right=tokens),
        Window(left=7, right=0),
    ):
        check(name, [t.cuda() for t in inputs(*shape, dtype, seed=tokens)], window)
