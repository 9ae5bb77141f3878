"""Reference statistics as a file: what a Frechet distance needs of the real images, and what it was made of.

An .npz with ADM's keys mu, sigma, mu_s and sigma_s, which its tools read too, and `about`, a JSON text with the
network, its weights' digest, the images' size and count.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ditfastattn.errors import MetricError
from eval import npz
from eval.frechet import Given
from eval.networks import INCEPTION, Network
from plans.files import write_whole

FORMAT = 1


@dataclass
class About:
    """What statistics were made of; `count` and `size` are None where a foreign file does not say."""

    network: str
    digest: str
    count: int | None
    size: int | None
    source: str = ""  # the folder's or file's own name
    fingerprint: str = ""
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    format: int = FORMAT


@dataclass
class Statistics:
    """Gaussians of pooled and, if there are, spatial features."""

    about: About
    pool: Given
    spatial: Given | None = None

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises plans.PlanError if it cannot be written."""
        arrays = {"mu": self.pool.mean, "sigma": self.pool.covariance}
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mean, "sigma_s": self.spatial.covariance}

        def write(beside: Path) -> None:
            with open(beside, "wb") as file:
                np.savez(file, allow_pickle=False, about=np.array(json.dumps(asdict(self.about))), **arrays)

        write_whole(path, write)

    def check(self, network: Network, size: int | None, path: Path) -> None:
        """Refuse statistics of another network, other weights or another size.

        Raises:
            MetricError: they are.
        """
        about = self.about
        if about.network != network.name:
            raise MetricError(
                f"{path} holds statistics of {about.network} features, and these are {network.name}'s; make others "
                f"with eval stats --network {network.name}, or measure with --network {about.network}"
            )
        if about.digest and network.digest and about.digest != network.digest:
            raise MetricError(
                f"{path} has other weights of {about.network} ({about.digest[:8]}, now {network.digest[:8]}); "
                "make the statistics again with these"
            )
        if about.size is not None and size is not None and about.size != size:
            raise MetricError(
                f"{path} is of images of {about.size} px, and the samples have {size} px; make statistics with "
                f"eval stats --size {size}"
            )


def holds_statistics(path: Path) -> bool:
    """Whether an .npz has precomputed statistics, ours or ADM's.

    Raises:
        MetricError: it has neither those nor images.
    """
    keys = set(npz.names(path))
    if {"mu", "sigma"} <= keys:
        return True
    if "arr_0" not in keys:
        raise MetricError(
            f"{path} has the arrays {', '.join(sorted(keys)) or '(none)'}; expected arr_0 (images, uint8 N,H,W,3) or "
            "mu and sigma (statistics)"
        )
    return False


def load(path: Path) -> Statistics:
    """Statistics from our file, or from ADM's or TTUR's, which are Inception's and say nothing of count and size.

    Raises:
        MetricError: arrays are missing, misshapen or not finite, or the file is of a later version.
    """
    keys = set(npz.names(path))
    try:
        with np.load(path, allow_pickle=False) as archive:
            about = About(INCEPTION, "", None, None, path.name)
            if "about" in keys:
                about = About(**json.loads(str(archive["about"])))
            pool = _gaussian(archive["mu"], archive["sigma"], path)
            spatial = _gaussian(archive["mu_s"], archive["sigma_s"], path) if {"mu_s", "sigma_s"} <= keys else None
    except (ValueError, TypeError, KeyError) as error:
        raise MetricError(f"{path} is not a file of statistics ({error}); make it again with eval stats") from None
    if about.format != FORMAT:
        raise MetricError(
            f"{path} has format {about.format}, this version reads {FORMAT}; make it again with eval stats"
        )
    return Statistics(about, pool, spatial)


def _gaussian(mean: np.ndarray, covariance: np.ndarray, path: Path) -> Given:
    mean, covariance = (np.asarray(a, dtype=np.float64) for a in (mean, covariance))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise MetricError(
            f"{path} has a mean {mean.shape} and a covariance {covariance.shape}; expected (D,) and (D, D)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise MetricError(f"{path} has numbers that are not finite; make it again with eval stats")
    return Given(mean, covariance)
