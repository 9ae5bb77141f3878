"""Losses against their formulas, element by element."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibration.loss import LOSSES, cosine, mrae, mrae_signed, mse, ssim

numbers = st.lists(st.floats(-10, 10, width=32), min_size=8, max_size=8)


@given(numbers, numbers)
def test_mrae(a: list[float], b: list[float]) -> None:
    expected = sum(abs(x - y) / (max(abs(x), abs(y)) + 1e-6) for x, y in zip(a, b, strict=True)) / 8
    assert float(mrae(torch.tensor(a), torch.tensor(b))) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert float(mrae(torch.tensor(a), torch.tensor(b))) <= 2


@given(numbers, numbers)
def test_mrae_signed(a: list[float], b: list[float]) -> None:
    a, b = [float(torch.tensor(x)) for x in a], [float(torch.tensor(x)) for x in b]
    ours = float(mrae_signed(torch.tensor(a), torch.tensor(b)))
    near_zero = any(abs(max(x, y)) < 1e-4 for x, y in zip(a, b, strict=True))  # float32 rounding decides there
    expected = sum(min(abs((x - y) / (max(x, y) + 1e-6)), 10) for x, y in zip(a, b, strict=True)) / 8
    assert near_zero or ours == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_signed_is_larger_on_gaussian_data_as_method_notes_say() -> None:
    generator = torch.Generator().manual_seed(0)
    o = torch.randn(100_000, generator=generator)
    for scale in (0.01, 0.05, 0.1):
        candidate = o + scale * torch.randn(o.shape, generator=generator)
        assert 1.4 < float(mrae_signed(o, candidate) / mrae(o, candidate)) < 1.9


def test_mse_cosine_ssim() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 3, 16, 16, generator=generator)
    assert float(mse(a, b)) == pytest.approx(float(((a - b) ** 2).double().mean()), rel=1e-5)
    cosines = [float((x * y).sum() / x.norm() / y.norm()) for x, y in zip(a, b, strict=True)]
    assert float(cosine(a, b)) == pytest.approx(1 - sum(cosines) / 2, rel=1e-5)
    assert float(ssim(a, a + 0.01 * b)) < float(ssim(a, a + 0.3 * b)) < float(ssim(a, b)) <= 2


@pytest.mark.parametrize("name", LOSSES)
def test_equal_outputs_have_no_loss_and_nan_is_not_hidden(name: str) -> None:
    a = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(LOSSES[name](a, a.clone())) == pytest.approx(0, abs=1e-6)
    broken = a.clone()
    broken[0, 0, 0, 0] = torch.nan
    assert not float(LOSSES[name](a, broken)) < 1e9  # so a candidate that gives NaN is never accepted
