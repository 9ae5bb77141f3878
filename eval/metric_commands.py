"""`python -m eval fid | sfid | is | kid | precision-recall`: one metric of a set of images."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from ditfastattn.errors import MetricError
from ditfastattn.ranks import Ranks, start
from eval.metrics import Settings, measure
from eval.options import add_network, device_of
from plans.files import write_text

_WHAT = {
    "fid": "FID (Frechet distance of Inception's pooled features) of samples to real images.",
    "sfid": "sFID (the same of Inception's spatial features, as ADM has it) of samples to real images.",
    "is": "Inception Score of samples.",
    "kid": "KID (unbiased polynomial MMD) of samples to real images.",
    "precision-recall": "Precision and recall by nearest neighbours (Kynkaanniemi et al. 2019).",
}


def parser(metric: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog=f"python -m eval {metric}", description=_WHAT[metric])
    p.add_argument("samples", type=Path, help="run folder of `eval sample`, folder of RGB images, or .npz with arr_0")
    if metric != "is":
        p.add_argument("reference", type=Path, help="real images: .npz of `eval stats` or of ADM, or a folder")
        p.add_argument("--size", type=int, help="cut a reference folder to this side by ADM's centre crop")
        p.add_argument("--skip-unreadable", action="store_true", help="in a reference folder that is cropped")
    defaults = Settings()
    if metric == "is":
        p.add_argument("--splits", type=int, default=defaults.splits, help=f"equal parts ({defaults.splits})")
        p.add_argument("--in-order", action="store_true", help="cut them in file order, as ADM does, not permuted")
    if metric in ("is", "kid"):
        p.add_argument("--seed", type=int, default=defaults.seed, help=f"of permutation or subsets ({defaults.seed})")
    if metric == "kid":
        p.add_argument("--subsets", type=int, default=defaults.subsets, help=f"how many ({defaults.subsets})")
        p.add_argument("--subset-size", type=int, default=defaults.subset_size, help=f"images ({defaults.subset_size})")
    if metric == "precision-recall":
        p.add_argument("--neighbours", type=int, default=defaults.neighbours, help=f"k ({defaults.neighbours})")
    add_network(p)
    p.add_argument("--json", type=Path, help="also write the result here, with all that made it")
    return p


def run(metric: str, argv: list[str]) -> None:
    """Print the number, and write it where --json says."""
    args = parser(metric).parse_args(argv)
    if getattr(args, "size", None) is not None and args.size < 1:
        raise MetricError(f"--size {args.size}; expected a positive number of pixels")
    with start() as ranks:
        _measure(metric, args, argv, ranks)


def _measure(metric: str, args: argparse.Namespace, argv: list[str], ranks: Ranks) -> None:
    chosen = {k: v for k, v in vars(args).items() if k in Settings.__dataclass_fields__}
    result = measure(
        args.samples,
        getattr(args, "reference", None),
        args.network,
        [metric],
        weights=args.weights,
        device=device_of(args, ranks),
        size=getattr(args, "size", None),
        settings=Settings(**chosen),
        batch=args.batch,
        skip_unreadable=getattr(args, "skip_unreadable", False),
        ranks=ranks,
        command=" ".join(["python -m eval", metric, *map(shlex.quote, argv)]),
    )[metric]
    if not ranks.first:
        return
    if args.json is not None:
        write_text(args.json, json.dumps(result, indent=2) + "\n")
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for note in (result["reference"] or {}).get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    print(line(result))
    print(f"{result['images_per_second']:,} images/s, peak {result['peak_host_memory_gib']} GiB of host memory")


def line(result: dict[str, Any]) -> str:
    """A result in one line: name with network, number, how many images, against how many."""
    value = result["value"]
    if isinstance(value, dict):
        number = ", ".join(f"{name} {v:.4f}" for name, v in value.items())
    else:
        number = f"{value:.6g}" + (f" +- {result['std']:.2g}" if "std" in result else "")
    against = result["reference"]
    counts = f"{result['count']:,} images"
    if against is not None:
        real = "an unknown number" if against["count"] is None else f"{against['count']:,}"
        counts += f" against {real} of {against['name']}"
    return f"{result['title']}: {number} ({counts})"


def fid(argv: list[str]) -> None:
    run("fid", argv)


def sfid(argv: list[str]) -> None:
    run("sfid", argv)


def inception_score(argv: list[str]) -> None:
    run("is", argv)


def kid(argv: list[str]) -> None:
    run("kid", argv)


def precision_and_recall(argv: list[str]) -> None:
    run("precision-recall", argv)
