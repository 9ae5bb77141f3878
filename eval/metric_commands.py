"""`python -m eval fid | sfid | is | kid | precision-recall`: one metric of a set of images."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import Any

from ditfastattn.errors import MetricError
from ditfastattn.ranks import Ranks, start
from eval.arguments.metric import parser
from eval.metric_settings import Settings
from eval.metrics import measure
from eval.options import device_of
from plans.files import write_text


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
