"""Mean and covariance of features, and the Frechet distance between two Gaussians that have them.

Only numpy, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

BLOCK = 1024  # rows merged at a time: the moments then do not depend on the batch size


class Gaussian(Protocol):
    """What a Frechet distance needs: mean (D,) and covariance (D, D), float64."""

    @property
    def mean(self) -> np.ndarray: ...

    @property
    def covariance(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Given:
    """A Gaussian read from a file, which does not always say of how many images."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclass
class Moments:
    """Running count, mean (D,) and sum of squared deviations (D, D) of feature vectors.

    Batches merge by the pairwise update of Chan, Golub and LeVeque 1983, which is exact in exact arithmetic
    and, unlike sums of squares, does not cancel when the mean is large.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, width: int) -> Moments:
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, batches: Iterable[np.ndarray], width: int) -> Moments:
        """Moments of all rows of `batches`, each (B, width)."""
        total = cls.empty(width)
        for batch in batches:
            total = total.merge(cls._batch(np.asarray(batch, dtype=np.float64)))
        return total

    @classmethod
    def _batch(cls, rows: np.ndarray) -> Moments:
        if not len(rows):
            return cls.empty(rows.shape[1])
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"cannot merge features of widths {self.mean.shape[0]} and {other.mean.shape[0]}")
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, (D, D)."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, there are {self.count}")
        return self.scatter / (self.count - 1)


class MomentStream:
    """Moments of rows that come in batches of any size; holds `BLOCK` rows and one covariance, however many come."""

    def __init__(self, width: int) -> None:
        self._total = Moments.empty(width)
        self._block = np.empty((BLOCK, width))
        self._filled = 0

    def update(self, rows: np.ndarray) -> None:
        """Add rows (B, width)."""
        while len(rows):
            taken = rows[: BLOCK - self._filled]
            self._block[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == BLOCK:
                self._flush()

    def _flush(self) -> None:
        self._total = self._total.merge(Moments._batch(self._block[: self._filled]))
        self._filled = 0

    def result(self) -> Moments:
        """Moments of all rows so far."""
        self._flush()
        return self._total


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix; rounding below zero is taken as zero."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017, Eq.
    6).

    The trace of the root is taken as the sum of the singular values of C_a^(1/2) C_b^(1/2), since their
    squares are the eigenvalues of C_a C_b. That is real and well defined for singular covariances too, where
    fewer vectors than dimensions were seen; scipy's sqrtm of the product is not.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"cannot compare features of widths {a.mean.shape[0]} and {b.mean.shape[0]}")
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    shift = a.mean - b.mean
    return max(0.0, float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross))
