"""The Frechet distance of a way of sampling: its images against statistics of real ones, in EfficientNet's features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ditfastattn.errors import MetricError
from eval import pareto_file
from eval.frechet import MomentStream, frechet_distance
from eval.networks import LITE0, load_network
from eval.pareto_bench import Bench, Way
from eval.sources import open_source
from eval.statistics import holds_statistics, load
from eval.stats import statistics_of

BATCH = 64  # images through the network at once


def chosen(rows: list[dict[str, Any]], shares: Sequence[float]) -> list[dict[str, Any]]:
    """The rows whose distances are measured: the uncompressed one, and of each method those nearest to the shares."""
    full = [row for row in rows if row["method"] == "full"][:1]
    near = [row for share in shares for row in pareto_file.nearest(rows, share)]
    return list({id(row): row for row in (*full, *near)}.values())


class Drawing:
    """Draws as many images as the options ask for, of random labels, in the dtype that they name."""

    def __init__(self, bench: Bench) -> None:
        args = bench.args
        self._labels, self._seed = bench.random_labels(args.fd), args.seed
        self._bench = bench.in_dtype(getattr(torch, args.fd_dtype or args.dtype))

    def pixels(self, way: Way, steps: int) -> torch.Tensor:
        """(N, H, W, 3) uint8."""
        return self._bench.drawn(way, steps, self._labels, self._seed).sampled.pixels


class Distance:
    """Frechet distances to one reference.

    Args:
        reference: statistics of ``python -m eval stats --network efficientnet-lite0``, or the images themselves.

    Raises:
        MetricError: there is no such file, or it holds statistics of other features.
    """

    def __init__(self, reference: Path, device: str) -> None:
        if not reference.exists():
            raise MetricError(f"{reference} does not exist; --fd-reference takes statistics or a folder of real images")
        self._network = load_network(LITE0, device)
        self._path = reference
        ready = reference.suffix == ".npz" and holds_statistics(reference)
        self._real = load(reference) if ready else statistics_of(open_source(reference), self._network)
        self._real.check(self._network, None, reference)

    @property
    def reference(self) -> str:
        """What the distances are to: the file, and where it says so how many images, and the beginning of their
        fingerprint."""
        about = self._real.about
        return self._path.name + ("" if about.count is None else f" ({about.count:,} images, {about.fingerprint[:8]})")

    def check(self, side: int) -> None:
        """Raises MetricError if the reference is of images of another size in pixels, or of another network."""
        self._real.check(self._network, side, self._path)

    def __call__(self, pixels: torch.Tensor) -> float:
        """Of images (N, H, W, 3) uint8, square."""
        self.check(pixels.shape[1])
        stream: MomentStream | None = None
        for part in pixels.split(BATCH):
            found = self._network(part.numpy()).pool
            stream = stream or MomentStream(found.shape[1])
            stream.update(found)
        assert stream is not None
        return round(frechet_distance(stream.result(), self._real.pool), 3)
