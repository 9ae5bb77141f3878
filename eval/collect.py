"""One pass over a set of images: everything that the metrics asked for need, in float64 sums that stay small."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ditfastattn.errors import MetricError
from ditfastattn.ranks import ALONE, Ranks
from eval.frechet import Moments, MomentStream
from eval.networks import Network
from eval.scores import ScoreStream, stack
from eval.sources import ImageSource


@dataclass(frozen=True)
class Needs:
    """What to keep of each image. `features` is the one that grows with the images: 8 KB each for Inception."""

    moments: bool = False
    spatial: bool = False
    features: bool = False
    score: bool = False
    splits: int = 10
    seed: int | None = 0  # of the permutation before the splits; None keeps the file order


@dataclass
class Collected:
    """What one pass kept; the same on every rank."""

    count: int
    size: tuple[int, int]
    pool: Moments | None
    spatial: Moments | None
    features: np.ndarray | None
    score: ScoreStream | None
    unreadable: list[str]
    notes: list[str]
    seconds: float


def collect(
    source: ImageSource, network: Network, needs: Needs, batch: int = 64, ranks: Ranks | None = None, label: str = ""
) -> Collected:
    """Run `network` over `source`, this rank over its part, and merge.

    Raises:
        MetricError: the network has no spatial features or logits that are needed; the images cannot be read, or
            changed while they were; none was left.
    """
    ranks = ranks or ALONE
    before = source.fingerprint()
    start, stop = whole_batches(ranks, source.count, batch)
    pool: MomentStream | None = None
    spatial: MomentStream | None = None
    score: ScoreStream | None = None
    kept: list[np.ndarray] = []
    done, begun = 0, time.monotonic()
    with tqdm(total=stop - start, desc=label or source.path.name, unit="img", disable=not ranks.first) as bar:
        for images in source.batches(batch, start, stop):
            found = network(images)
            if needs.spatial and found.spatial is None:
                raise MetricError(f"{network.title} has no spatial features for sFID; use --network inception")
            if needs.score and found.logits is None:
                raise MetricError(f"{network.title} has no logits for an Inception Score; use --network inception")
            if needs.moments:
                pool = pool or MomentStream(found.pool.shape[1])
                pool.update(found.pool)
            if needs.spatial and found.spatial is not None:
                spatial = spatial or MomentStream(found.spatial.shape[1])
                spatial.update(found.spatial)
            if needs.score and found.logits is not None:
                score = score or ScoreStream(source.count, found.logits.shape[1], needs.splits, needs.seed)
                score.update(found.logits, start + done)
            if needs.features:
                kept.append(found.pool)
            done += len(images)
            bar.update(len(images))
    seconds = time.monotonic() - begun
    if source.fingerprint() != before:
        raise MetricError(f"{source.path} changed while it was read; wait until nothing writes there, and run it again")
    counts = ranks.gather(done)
    if not sum(counts):
        raise MetricError(f"none of the {source.count} images of {source.path} could be read")
    scores = [s for s in ranks.gather(score) if s is not None]
    for other in scores[1:]:
        scores[0].add(other)
    features = [f for part in ranks.gather(kept) for f in part] if needs.features else []
    return Collected(
        count=sum(counts),
        size=source.size,
        pool=_merged(ranks, pool) if needs.moments else None,
        spatial=_merged(ranks, spatial) if needs.spatial else None,
        features=stack(features, features[0].shape[1]) if needs.features else None,
        score=scores[0] if scores else None,
        unreadable=[name for part in ranks.gather(source.unreadable) for name in part],
        notes=[note for part in ranks.gather(source.notes) for note in part],
        seconds=max(ranks.gather(seconds)),
    )


def whole_batches(ranks: Ranks, count: int, batch: int) -> tuple[int, int]:
    """[start, stop) of this rank's images: contiguous, so that rank order is file order, and whole batches of the one
    sequence, since a network's float32 output depends, in the last bits, on its batch."""
    mine = ranks.share(-(-count // batch))
    return min(mine.start * batch, count), min(mine.stop * batch, count)


def _merged(ranks: Ranks, mine: MomentStream | None) -> Moments:
    """Of all ranks; one that had no image, and so does not know the width, adds nothing."""
    parts = [p for p in ranks.gather(mine.result() if mine else None) if p is not None]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


def report_unreadable(collected: Collected, skip: bool) -> None:
    """List on stderr what could not be read.

    Raises:
        MetricError: there was something, and it is not to be skipped.
    """
    if not collected.unreadable:
        return
    for name in collected.unreadable:
        print(f"unreadable: {name}", file=sys.stderr)
    total = collected.count + len(collected.unreadable)
    if not skip:
        raise MetricError(
            f"{len(collected.unreadable)} of {total} files cannot be read (listed above); replace them, or leave them "
            "out with --skip-unreadable, which the statistics will say"
        )
