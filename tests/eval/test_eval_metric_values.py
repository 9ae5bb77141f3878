"""The formulas against libraries that are not ours, on the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from ditfastattn.errors import MetricError
from eval import scores
from eval.frechet import Moments, MomentStream, frechet_distance
from eval.scores import ScoreStream, kernel_distance, polynomial_mmd, precision_recall


class Identity(nn.Module):
    """Features instead of images, for torchmetrics; it wants to know their width."""

    num_features = 24

    def forward(self, x: Tensor) -> Tensor:
        return x


def rows(seed: int, count: int, width: int = 24, rank: int | None = None, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, rank or width)) @ rng.normal(size=(rank or width, width)) + shift


def torchmetrics_frechet(a: np.ndarray, b: np.ndarray) -> float:
    metric = FrechetInceptionDistance(feature=Identity(), normalize=True).set_dtype(torch.float64)
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    return float(metric.compute())


@pytest.mark.parametrize(
    ("count", "rank"), [(200, None), (200, 7), (15, None)], ids=["full", "in a subspace", "fewer than dimensions"]
)
def test_frechet_distance_equals_scipy_and_torchmetrics(count: int, rank: int | None) -> None:
    x, y = rows(0, count, rank=rank), rows(1, count + 3, rank=rank, shift=0.3)
    a, b = Moments.of([x], 24), Moments.of([y], 24)
    ours = frechet_distance(a, b)
    with np.errstate(all="ignore"):
        root = linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False))
    shift = x.mean(0) - y.mean(0)
    theirs = shift @ shift + np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False)) - 2 * np.trace(root).real
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours == pytest.approx(torchmetrics_frechet(x, y), rel=1e-6)


def test_moments_do_not_depend_on_the_batches() -> None:
    """Bit for bit: rows are merged in blocks of a fixed number."""
    x = rows(2, 3000, shift=100)
    results = []
    for batch in (1, 64, 1000, 3000):
        stream = MomentStream(24)
        for i in range(0, len(x), batch):
            stream.update(x[i : i + batch])
        results.append(stream.result())
    for moments in results:
        assert moments.count == 3000
        assert (moments.scatter == results[0].scatter).all() and (moments.mean == results[0].mean).all()
        np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-11, atol=1e-11)


def test_inception_score_equals_torchmetrics() -> None:
    """On its own permutation. Its deviation over the splits is the sample's (n - 1), ours the population's, as in
    Salimans et al.'s code: sqrt(10 / 9) = 1.054 times ours."""
    logits = 2 * rows(3, 500)
    metric = InceptionScore(feature=Identity(), splits=10).set_dtype(torch.float64)
    metric.update(torch.from_numpy(logits))
    torch.manual_seed(5)
    mean, deviation = metric.compute()
    torch.manual_seed(5)
    order = torch.randperm(500).numpy()
    stream = ScoreStream(500, 24, splits=10, seed=None)
    for i in range(0, 500, 60):
        stream.update(logits[order][i : i + 60], i)
    ours = stream.result()
    assert ours.mean == pytest.approx(float(mean), rel=1e-12)
    assert ours.std * (10 / 9) ** 0.5 == pytest.approx(float(deviation), rel=1e-9)


def test_inception_score_is_the_formula_and_merges() -> None:
    """Also with a count that the splits do not divide, where torchmetrics would make unequal parts of another kind."""
    logits = 3 * rows(4, 103)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = np.random.default_rng(0).permutation(103)
    expected = []
    for i in range(4):
        part = p[order[i * 103 // 4 : (i + 1) * 103 // 4]]
        expected.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    halves = [ScoreStream(103, 24, splits=4) for _ in range(2)]
    halves[0].update(logits[:40], 0)
    halves[1].update(logits[40:], 40)
    halves[0].add(halves[1])
    assert halves[0].result().mean == pytest.approx(np.mean(expected), rel=1e-12)
    assert halves[0].result().std == pytest.approx(np.std(expected), rel=1e-9)


def test_inception_score_of_a_sorted_folder_is_not_cut_by_class() -> None:
    """Ten certain classes in file order: each part in order has one class and scores 1; permuted it scores near 10."""
    logits = np.repeat(50 * np.eye(10), 100, axis=0)
    in_order, permuted = ScoreStream(1000, 10, seed=None), ScoreStream(1000, 10)
    for stream in (in_order, permuted):
        stream.update(logits, 0)
    assert in_order.result().mean == pytest.approx(1)
    assert 9 < permuted.result().mean < 10


def test_kernel_distance_equals_torchmetrics() -> None:
    x, y = rows(5, 80), rows(6, 80, shift=0.2)
    theirs = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert polynomial_mmd(x, y) == pytest.approx(theirs, rel=1e-10)
    metric = KernelInceptionDistance(feature=Identity(), subsets=3, subset_size=80, normalize=True).set_dtype(
        torch.float64
    )
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    ours = kernel_distance(y, x, subsets=3, size=80)  # whole sets: every subset is the same
    assert ours.mean == pytest.approx(float(metric.compute()[0]), rel=1e-9)
    assert ours.std == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    """Sets of one distribution: about zero, on both sides of it, and the same for the same seed."""
    x, y = rows(7, 600, width=6), np.random.default_rng(8).permutation(rows(7, 600, width=6))[:300]
    values = [kernel_distance(x[:300], y, 20, 50, seed=s).mean for s in range(4)]
    assert max(map(abs, values)) < 0.5 * polynomial_mmd(x, x + 1)
    assert kernel_distance(x, y, 20, 50, seed=3) == kernel_distance(x, y, 20, 50, seed=3)


def brute_force(samples: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float]:
    """Kynkaanniemi et al. 2019, Eq. 1 and 2, one feature at a time."""

    def share(of: np.ndarray, members: np.ndarray) -> float:
        radii = np.sort(cdist(members, members), axis=1)[:, k]  # column 0 is the member itself
        return float(np.mean([(np.linalg.norm(members - f, axis=1) <= radii).any() for f in of]))

    return share(samples, reference), share(reference, samples)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_equals_brute_force(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks smaller than the sets, also of another size than they divide into."""
    monkeypatch.setattr(scores, "BLOCK", 17)
    x, y = rows(9, 120, width=3), 0.7 * rows(10, 90, width=3) + 1
    ours = precision_recall(x, y, k)
    assert tuple(ours) == pytest.approx(brute_force(x, y, k))
    assert 0 < ours.precision < 1 and 0 < ours.recall < 1


def test_precision_recall_of_one_set_and_of_distant_ones() -> None:
    x = rows(11, 50).astype(np.float32)
    assert tuple(precision_recall(x, x)) == (1, 1)
    assert tuple(precision_recall(x, x + 1000)) == (0, 0)


def test_what_cannot_be_computed_is_refused() -> None:
    x = rows(12, 5)
    with pytest.raises(MetricError, match=r"100 subsets of 1000 images out of 5 and 5.*--subset-size"):
        kernel_distance(x, x)
    with pytest.raises(MetricError, match="5 neighbours among 5 and 5 images"):
        precision_recall(x, x, 5)
    with pytest.raises(MetricError, match="10 splits of 5 images"):
        ScoreStream(5, 10)
