"""The Inception Score, the kernel distance, and precision and recall, from features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ditfastattn.errors import MetricError

BLOCK = 2048  # rows and columns of distances at a time: 32 MB, however many images


class Score(NamedTuple):
    """Mean and population standard deviation over splits or subsets."""

    mean: float
    std: float


class ScoreStream:
    """Sums from which the Inception Score of each split follows: two numbers and one vector a split.

    Salimans et al. 2016, Section 4: exp(E_x KL(p(y|x) || p(y))), over `splits` equal parts, mean and standard
    deviation. Which image is in which part: those [i * n // splits, (i + 1) * n // splits) of a permutation seeded with
    `seed`; with seed None of the file order, as improved-gan and ADM do. The permutation is the default because a
    folder sorted by class, cut in file order, has a tenth of the classes in each part, and a score far too low.

    Raises:
        MetricError: fewer images than splits.
    """

    def __init__(self, count: int, classes: int, splits: int = 10, seed: int | None = 0) -> None:
        if not 1 <= splits <= count:
            raise MetricError(f"{splits} splits of {count} images; expected from 1 split to one for each image")
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        self._split = np.empty(count, dtype=np.int64)
        for i in range(splits):
            self._split[order[i * count // splits : (i + 1) * count // splits]] = i
        self.counts = np.zeros(splits, dtype=np.int64)
        self.probabilities = np.zeros((splits, classes))
        self.negentropies = np.zeros(splits)

    def update(self, logits: np.ndarray, start: int) -> None:
        """Logits (B, classes) of images start, start + 1, ..."""
        log_p = torch.from_numpy(logits).double().log_softmax(1).numpy()
        p = np.exp(log_p)
        split = self._split[start : start + len(logits)]
        np.add.at(self.counts, split, 1)
        np.add.at(self.probabilities, split, p)
        np.add.at(self.negentropies, split, (p * log_p).sum(1))

    def add(self, other: ScoreStream) -> None:
        """The images of another rank."""
        self.counts += other.counts
        self.probabilities += other.probabilities
        self.negentropies += other.negentropies

    def result(self) -> Score:
        """E_x KL is the mean negative entropy of p(y|x) less that of p(y)."""
        p = self.probabilities / self.counts[:, None]
        marginal = np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(1)
        scores = np.exp(self.negentropies / self.counts - marginal)
        return Score(float(scores.mean()), float(scores.std()))


def polynomial_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD of (M, D) and (N, D) with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, Section
    2.2). It may be negative."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    m, n, width = len(x), len(y), x.shape[1]
    xx, yy, xy = ((a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    inside = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(inside - 2 * xy.mean())


def check_subsets(samples: int, reference: int, subsets: int, size: int) -> None:
    """Raises MetricError where `kernel_distance` of so many images would."""
    if not 2 <= size <= min(samples, reference) or subsets < 1:
        raise MetricError(
            f"{subsets} subsets of {size} images out of {samples} and {reference}; expected at least one subset, of 2 "
            "images or more and no more than the smaller set: give --subset-size"
        )


def check_neighbours(samples: int, reference: int, k: int) -> None:
    """Raises MetricError where `precision_recall` of so many images would."""
    if k < 1 or min(samples, reference) <= k:
        raise MetricError(
            f"{k} neighbours among {samples} and {reference} images; expected more images than neighbours"
        )


def kernel_distance(x: np.ndarray, y: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0) -> Score:
    """Mean and standard deviation of `polynomial_mmd` over random subsets of `size` features of each set.

    Raises:
        MetricError: a set is smaller than a subset, or a subset than 2.
    """
    check_subsets(len(x), len(y), subsets, size)
    rng = np.random.default_rng(seed)
    values = [
        polynomial_mmd(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return Score(float(np.mean(values)), float(np.std(values)))


class PrecisionRecall(NamedTuple):
    """Share of samples near the reference, and of the reference near the samples."""

    precision: float
    recall: float


def precision_recall(samples: np.ndarray, reference: np.ndarray, k: int = 3, device: str = "cpu") -> PrecisionRecall:
    """Kynkaanniemi et al. 2019, Eq. 1 and 2: a feature is near a set if it is within the distance from some member
    to that member's k-th nearest other member.

    float64, in blocks of `BLOCK` x `BLOCK`. ADM computes the distances in float16 and Kynkaanniemi's code in float32
    or float16; both round away the difference between near neighbours.

    Raises:
        MetricError: a set has no k-th other member.
    """
    check_neighbours(len(samples), len(reference), k)
    s, r = (torch.from_numpy(x).to(device) for x in (samples, reference))
    return PrecisionRecall(_covered(s, r, _radii(r, k)), _covered(r, s, _radii(s, k)))


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (A, B), float64."""
    a, b = a.double(), b.double()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared distance (N,) of each row to its k-th nearest other row."""
    found = []
    for i in range(0, len(x), BLOCK):
        rows = x[i : i + BLOCK]
        best = torch.full((len(rows), k), torch.inf, dtype=torch.float64, device=x.device)
        for j in range(0, len(x), BLOCK):
            distance = _squared(rows, x[j : j + BLOCK])
            if i == j:
                distance.fill_diagonal_(torch.inf)
            best = torch.cat([best, distance], 1).topk(k, largest=False, sorted=True).values
        found.append(best[:, -1])
    return torch.cat(found)


def _covered(x: Tensor, members: Tensor, radii: Tensor) -> float:
    """Share of rows of `x` that lie within the radius of a member."""
    inside = 0
    for i in range(0, len(x), BLOCK):
        rows = x[i : i + BLOCK]
        near = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
        for j in range(0, len(members), BLOCK):
            near |= (_squared(rows, members[j : j + BLOCK]) <= radii[j : j + BLOCK]).any(1)
        inside += int(near.sum())
    return inside / len(x)


def stack(parts: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Features (N, width) float32 of all ranks."""
    return np.concatenate([np.empty((0, width), np.float32), *parts])
