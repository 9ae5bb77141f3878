"""What ``python -m eval pareto`` refuses before a model is loaded."""

from __future__ import annotations

import argparse
import math

from ditfastattn.errors import DitFastAttnError
from ditfastattn.ranks import ALONE
from eval import pareto_file
from eval.least import check_least

LEAST = {"base_steps": 2, "labels": 1, "n": 1, "batch": 1, "time_batch": 1, "repeats": 1, "evaluations": 0, "seed": 0}
NEEDED = ("model", "method", "setting", "base_steps", "steps", "total_macs", "latent_rel_l2", "speedup")  # of rows


def check(args: argparse.Namespace) -> None:
    """Numbers that make no comparison, and a device that is not there.

    Raises:
        DitFastAttnError: as one sentence.
    """
    check_least(args, LEAST)
    if args.seed >= 2**63:
        raise DitFastAttnError(f"--seed must be below 2**63, got {args.seed}")
    for speedup in args.speedups:
        if not 1 < speedup < math.inf:
            raise DitFastAttnError(f"--speedups must be above 1, got {speedup:g}")
    for share in args.fd_shares:
        if not 0 < share <= 1:
            raise DitFastAttnError(f"--fd-shares must be above 0 and at most 1, got {share:g}")
    if not 1 <= args.guidance < math.inf:
        raise DitFastAttnError(f"--guidance must be 1 (none) or more, got {args.guidance:g}")
    args.device = ALONE.device(args.device)
    if args.again is not None:
        _check_again(args)
    elif args.plans is not None:
        raise DitFastAttnError("--plans names the plans of rows that are followed --again, which was not given")


def _check_again(args: argparse.Namespace) -> None:
    """What rows of a file are followed by."""
    if args.only:
        raise DitFastAttnError("--again follows all rows of the file: leave --only out")
    if args.plans is not None and not args.plans.is_dir():
        raise DitFastAttnError(f"--plans {args.plans} is no folder")
    if not args.again.exists():
        raise DitFastAttnError(f"--again {args.again} does not exist: name a pareto.json")
    try:
        rows = pareto_file.read(args.again)["rows"]
        lacking = {name for row in rows for name in NEEDED if name not in row}
    except (ValueError, TypeError, KeyError, OSError):
        raise DitFastAttnError(f"--again {args.again} is no pareto.json: it has no list of rows") from None
    if lacking:
        raise DitFastAttnError(f"--again {args.again} has rows without {', '.join(sorted(lacking))}")
