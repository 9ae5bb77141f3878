"""Reference statistics of real images, for `eval fid` and `eval sfid`, made once and kept."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

from ditfastattn.errors import MetricError
from ditfastattn.ranks import ALONE, Ranks, start
from eval.arguments.stats import parser
from eval.collect import Collected, Needs, collect, report_unreadable
from eval.frechet import Given, Moments
from eval.networks import INCEPTION, Network, load_network
from eval.options import device_of
from eval.sources import ImageSource, open_source
from eval.statistics import FORMAT, About, Statistics, holds_statistics, load
from plans import PlanError


def statistics_of(
    source: ImageSource, network: Network, *, batch: int = 64, skip_unreadable: bool = False, ranks: Ranks | None = None
) -> Statistics:
    """Statistics of `source`, from the cache if its files, the network's weights and the crop are the same.

    A network whose weights cannot be seen (`module:callable`) is never cached: its code may have changed.

    Raises:
        MetricError: as `collect`; unreadable files that are not to be skipped.
    """
    ranks = ranks or ALONE
    kept = _cache_file(source, network)
    cached = ranks.gather(load(kept) if ranks.first and kept and kept.is_file() else None)[0]
    if cached is not None and (skip_unreadable or not cached.about.unreadable):
        return cached
    found = collect(source, network, Needs(moments=True, spatial=network.is_inception), batch, ranks)
    report_unreadable(found, skip_unreadable)
    made = from_collected(found, source, network)
    if kept and ranks.first:
        try:
            made.save(kept)
        except PlanError as error:
            print(f"warning: the statistics are not kept: {error}", file=sys.stderr)
    return made


def from_collected(found: Collected, source: ImageSource, network: Network) -> Statistics:
    """Statistics of what one pass kept. Raises MetricError for fewer than 2 images."""
    assert found.pool is not None
    size = found.size[0] if found.size[0] == found.size[1] else None
    about = About(network.name, network.digest, found.count, size, source.path.name, source.fingerprint())
    about.notes, about.unreadable = found.notes, found.unreadable
    return Statistics(about, _given(found.pool), _given(found.spatial) if found.spatial else None)


def _given(moments: Moments) -> Given:
    if moments.count < 2:
        raise MetricError("there is 1 image; expected at least 2, for a covariance")
    return Given(moments.mean, moments.covariance)


def _cache_file(source: ImageSource, network: Network) -> Path | None:
    if not network.digest:
        return None
    folder = os.environ.get("DITFASTATTN_CACHE") or Path.home() / ".cache" / "ditfastattn"
    made_of = [FORMAT, source.fingerprint(), source.size, getattr(source, "crop", None), network.name, network.digest]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    return Path(folder) / "statistics" / f"{key[:32]}.npz"


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.size < 1:
        raise MetricError(f"--size {args.size}; expected a positive number of pixels")
    with start() as ranks:
        _stats(args, ranks)


def _stats(args: argparse.Namespace, ranks: Ranks) -> None:
    if args.images.is_file() and args.images.suffix == ".npz" and holds_statistics(args.images):
        if args.network != INCEPTION:
            raise MetricError(
                f"{args.images} holds precomputed statistics; only images can be measured by another network"
            )
        made = load(args.images)
        made.about.size = made.about.size or args.size
        if made.about.size != args.size:
            raise MetricError(f"{args.images} is of {made.about.size} px images; expected {args.size}")
    else:
        source = open_source(args.images, args.size, args.skip_unreadable)
        network = load_network(args.network, device_of(args, ranks), args.weights)
        made = statistics_of(source, network, batch=args.batch, skip_unreadable=args.skip_unreadable, ranks=ranks)
    if not ranks.first:
        return
    made.save(args.out)
    for note in made.about.notes:
        print(f"note: {note}", file=sys.stderr)
    count = "an unknown number of" if made.about.count is None else f"{made.about.count:,}"
    skipped = f", {len(made.about.unreadable)} unreadable left out" if made.about.unreadable else ""
    print(f"{args.out}: {made.about.network} statistics of {count} images, {args.size} px{skipped}")


if __name__ == "__main__":
    main()
