"""Metrics of a set of images, from one pass over it; each number carries the name of its network.

results = measure("runs/d2", "imagenet512.npz", "inception", ["fid", "is"])
results["fid"]["value"], results["fid"]["title"]
"""

from __future__ import annotations

import datetime
import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditfastattn.errors import MetricError
from ditfastattn.ranks import ALONE, Ranks
from ditfastattn.version import VERSION
from eval.collect import Collected, Needs, collect, report_unreadable
from eval.frechet import Gaussian, frechet_distance
from eval.metric_settings import Settings
from eval.networks import Network, load_network
from eval.record import device_name
from eval.scores import check_neighbours, check_subsets, kernel_distance, precision_recall
from eval.sources import Folder, ImageSource, open_source
from eval.statistics import Statistics, holds_statistics, load
from eval.stats import from_collected, statistics_of

METRICS = ("fid", "sfid", "is", "kid", "precision-recall")
_TITLES = {  # what the field calls it, with Inception; what it is called with any other network
    "fid": ("FID ({0})", "Frechet distance ({0} features, not FID)"),
    "sfid": ("sFID ({0})", "Frechet distance ({0} spatial features, not sFID)"),
    "is": ("Inception Score ({0})", "Inception-style score ({0})"),
    "kid": ("KID ({0})", "kernel distance ({0} features, not KID)"),
    "precision-recall": ("precision and recall ({0} features)", "precision and recall ({0} features)"),
}


def title(metric: str, network: Network) -> str:
    """The metric's name with its network's: only Inception's distance is called FID."""
    return _TITLES[metric][0 if network.is_inception else 1].format(network.title)


def measure(
    samples: str | Path,
    reference: str | Path | None = None,
    network: str | Network = "inception",
    metrics: Sequence[str] = ("fid",),
    *,
    size: int | None = None,
    weights: Path | None = None,
    settings: Settings | None = None,
    batch: int = 64,
    device: str = "cpu",
    skip_unreadable: bool = False,
    ranks: Ranks | None = None,
    command: str = "",
) -> dict[str, dict[str, Any]]:
    """Results by metric, ready for JSON, the same on every rank.

    Args:
        samples: a run folder of `eval sample`, a folder of RGB images of one size, or an .npz with arr_0.
        reference: real images: statistics of `eval stats` or of ADM, an .npz with arr_0, or a folder. `is` needs none.
        size: crop a reference folder by ADM's centre crop; without it, it is held to the rules of samples.
        skip_unreadable: in a reference folder that is cropped; samples are never skipped.

    Raises:
        MetricError: for everything that would make a number mean something else; see the messages.
    """
    settings, ranks = settings or Settings(), ranks or ALONE
    unknown = [m for m in metrics if m not in METRICS]
    if unknown or not metrics:
        raise MetricError(f"there is no metric {', '.join(unknown) or 'asked for'}; choose of {', '.join(METRICS)}")
    compared = [m for m in metrics if m != "is"]
    if compared and reference is None:
        raise MetricError(f"{compared[0]} compares with real images; give statistics, a folder or an .npz of them")
    source = open_source(Path(samples))
    opened = (
        _open_reference(Path(reference), compared, source, size, skip_unreadable) if reference and compared else None
    )
    _check_counts(metrics, settings, source, opened)
    net = network if isinstance(network, Network) else load_network(network, device, weights)
    gaussians, real = None, None
    side = source.size[0] if source.size[0] == source.size[1] else None
    if opened is not None:
        if opened.statistics is not None:
            opened.statistics.check(net, side, Path(str(reference)))
        gaussians, real = _reference(opened, net, compared, batch, skip_unreadable, ranks)
    needs = Needs(
        moments="fid" in metrics,
        spatial="sfid" in metrics,
        features=bool({"kid", "precision-recall"} & set(metrics)),
        score="is" in metrics,
        splits=settings.splits,
        seed=None if settings.in_order else settings.seed,
    )
    found = collect(source, net, needs, batch, ranks, "samples")
    results = {}
    for metric in metrics:
        value, used, said = _value(metric, found, gaussians, real, settings, net.device)
        results[metric] = {
            "metric": metric,
            "title": title(metric, net),
            **value,
            "network": {"name": net.name, "title": net.title, "weights": net.digest},
            "count": found.count,
            "size": list(found.size),
            "settings": used,
            "reference": _about(metric, gaussians, real, reference),
            "warnings": [*net.warnings, *said],
            "images_per_second": round(found.count / max(found.seconds, 1e-9), 1),
            "peak_host_memory_gib": round(_peak_bytes() / 2**30, 2),
            "command": command,
            "device": device_name(net.device),
            "processes": ranks.world,
            "versions": {
                "ditfastattn": VERSION,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
    return results


def _check_counts(metrics: Sequence[str], s: Settings, source: ImageSource, opened: _Opened | None) -> None:
    """Too few images for a metric, told before any is read; of unreadable ones nothing is known yet."""
    if "is" in metrics and not 1 <= s.splits <= source.count:
        raise MetricError(f"{s.splits} splits of {source.count} images; expected 1 split to one an image: --splits")
    if opened is None or opened.images is None:
        return
    if "kid" in metrics:
        check_subsets(source.count, opened.images.count, s.subsets, s.subset_size)
    if "precision-recall" in metrics:
        check_neighbours(source.count, opened.images.count, s.neighbours)


@dataclass
class _Opened:
    """A reference: statistics, images, or (ADM's batches) both."""

    statistics: Statistics | None
    images: ImageSource | None


def _open_reference(path: Path, metrics: Sequence[str], samples: ImageSource, size: int | None, skip: bool) -> _Opened:
    ready, images = None, None
    precomputed = path.is_file() and path.suffix == ".npz" and holds_statistics(path)
    needs_images = bool({"kid", "precision-recall"} & set(metrics))
    if precomputed:
        ready = load(path)
    if not precomputed or needs_images:
        from eval import npz

        if precomputed and "arr_0" not in npz.names(path):
            raise MetricError(
                f"{path} holds statistics only, and {metrics[0]} needs the images: give their folder or .npz"
            )
        images = open_source(path, size, skip)
        if images.size != samples.size:
            raise MetricError(
                f"{path} has images of {images.size[1]} x {images.size[0]}, the samples are {samples.size[1]} x "
                f"{samples.size[0]}; expected one size"
                + (f": give --size {samples.size[0]}" if isinstance(images, Folder) else "")
            )
    return _Opened(ready, images)


def _reference(
    opened: _Opened, network: Network, metrics: Sequence[str], batch: int, skip: bool, ranks: Ranks
) -> tuple[Statistics | None, Collected | None]:
    """Statistics for the Frechet distances, features for the others."""
    wants_gaussian = bool({"fid", "sfid"} & set(metrics))
    if opened.images is None or (wants_gaussian and metrics and not {"kid", "precision-recall"} & set(metrics)):
        ready = opened.statistics
        if ready is None and opened.images is not None:
            ready = statistics_of(opened.images, network, batch=batch, skip_unreadable=skip, ranks=ranks)
        return ready, None
    missing = wants_gaussian and opened.statistics is None
    needs = Needs(moments=missing, spatial=missing and "sfid" in metrics, features=True)
    real = collect(opened.images, network, needs, batch, ranks, "reference")
    report_unreadable(real, skip)
    return (from_collected(real, opened.images, network) if missing else opened.statistics), real


def _value(
    metric: str, found: Collected, gaussians: Statistics | None, real: Collected | None, s: Settings, device: str
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The number, the settings it depends on, and warnings."""
    if metric in ("fid", "sfid"):
        assert gaussians is not None
        mine = found.pool if metric == "fid" else found.spatial
        theirs = gaussians.pool if metric == "fid" else gaussians.spatial
        if theirs is None:
            raise MetricError(
                "the reference has no spatial statistics (mu_s, sigma_s); make them again with eval stats"
            )
        assert mine is not None
        return {"value": _distance(mine, theirs)}, {}, _too_few(len(mine.mean), found.count, gaussians.about.count)
    if metric == "is":
        assert found.score is not None
        score = found.score.result()
        used = {"splits": s.splits, "order": "as in the folder" if s.in_order else f"permuted with seed {s.seed}"}
        return {"value": score.mean, "std": score.std}, used, []
    assert found.features is not None and real is not None and real.features is not None
    if metric == "kid":
        score = kernel_distance(found.features, real.features, s.subsets, s.subset_size, s.seed)
        used = {"subsets": s.subsets, "subset_size": s.subset_size, "seed": s.seed}
        return {"value": score.mean, "std": score.std}, used, []
    near = precision_recall(found.features, real.features, s.neighbours, device)
    return {"value": near._asdict()}, {"neighbours": s.neighbours}, []


def _distance(mine: Gaussian, theirs: Gaussian) -> float:
    try:
        return frechet_distance(mine, theirs)
    except ValueError as error:
        raise MetricError(f"{error}; expected features of one network, of two images or more") from None


def _too_few(width: int, count: int, real: int | None) -> list[str]:
    """A covariance of `width` dimensions has full rank from width + 1 images on."""
    return [
        f"{n:,} {what} for {width:,} features: their covariance is singular and the distance is far too high, by "
        f"an amount that depends on the count; expected more than {width:,} (papers: 50,000)"
        for what, n in (("samples", count), ("reference images", real))
        if n is not None and n <= width
    ]


def _about(
    metric: str, gaussians: Statistics | None, real: Collected | None, path: str | Path | None
) -> dict[str, Any] | None:
    if metric == "is" or path is None:
        return None
    if metric in ("fid", "sfid") and gaussians is not None:
        a = gaussians.about
        skipped = {"count": a.count, "size": a.size, "notes": a.notes, "unreadable": len(a.unreadable)}
        return {"name": Path(path).name, "source": a.source, "fingerprint": a.fingerprint, **skipped}
    assert real is not None
    return {"name": Path(path).name, "count": real.count, "notes": real.notes, "unreadable": len(real.unreadable)}


def _peak_bytes() -> int:
    """Of this process so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
