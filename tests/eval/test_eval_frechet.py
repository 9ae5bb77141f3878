from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from eval.frechet import Moments, frechet_distance


def rows(seed: int, count: int, width: int = 12, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + offset


def test_streaming_equals_numpy_in_any_split() -> None:
    x = rows(0, 101, offset=1e4)
    whole = Moments.of([x], 12)
    split = Moments.of(np.split(x, [3, 4, 50, 50]), 12)
    left, right = Moments.of([x[:40]], 12), Moments.of([x[40:]], 12)
    for moments in (whole, split, left.merge(right), right.merge(left), Moments.empty(12).merge(whole)):
        assert moments.count == 101
        np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-13)
        np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)


def test_merge_is_exact_where_arithmetic_is() -> None:
    """Small integers in sets of a power of two: no rounding, so the merge equals the whole bit for bit."""
    x = np.random.default_rng(0).integers(-8, 8, (64, 5)).astype(float)
    whole, merged = Moments.of([x], 5), Moments.of(np.split(x, 2), 5)
    assert (whole.mean == merged.mean).all() and (whole.scatter == merged.scatter).all()


def test_distance_equals_the_formula_with_sqrtm() -> None:
    a, b = Moments.of([rows(1, 200)], 12), Moments.of([rows(2, 300, offset=0.5)], 12)
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_distance_of_known_gaussians() -> None:
    a = Moments(3, np.zeros(2), 2 * np.diag([1.0, 4.0]))
    b = Moments(3, np.array([3.0, 4.0]), 2 * np.diag([9.0, 16.0]))
    assert frechet_distance(a, b) == pytest.approx(25 + (1 - 3) ** 2 + (2 - 4) ** 2)


def test_singular_covariances() -> None:
    """Fewer vectors than dimensions; a set that lies in one plane against itself moved out of it."""
    a = Moments.of([rows(3, 6)], 12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    flat = np.zeros((50, 4))
    flat[:, :2] = np.random.default_rng(0).normal(size=(50, 2))
    moved = flat + np.array([0, 0, 3.0, 0])
    assert frechet_distance(Moments.of([flat], 4), Moments.of([moved], 4)) == pytest.approx(9, abs=1e-6)
    point = Moments.of([np.ones((5, 4))], 4)
    assert frechet_distance(point, point) == 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="widths 2 and 3"):
        Moments.empty(2).merge(Moments.empty(3))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(Moments.of([np.zeros((1, 2))], 2), Moments.of([np.zeros((1, 2))], 2))
