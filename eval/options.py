"""Command line options that the metrics share."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ditfastattn.errors import MetricError
from ditfastattn.ranks import Ranks
from eval.inception_weights import VARIABLE
from eval.networks import INCEPTION, LITE0


def add_network(p: argparse.ArgumentParser) -> None:
    p.add_argument("--network", default=INCEPTION, help=f"{INCEPTION} (the default), {LITE0}, or module:callable")
    p.add_argument("--weights", type=Path, help=f"Inception's weights (else ${VARIABLE}, else fetched once)")
    p.add_argument("--batch", type=int, default=64, help="images a forward pass (64)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def device_of(args: argparse.Namespace, ranks: Ranks) -> str:
    """This rank's device.

    Raises:
        MetricError: the batch is below 1.
        RankError: there is no such device, or not one for each rank.
    """
    if args.batch < 1:
        raise MetricError(f"--batch {args.batch}; expected at least 1")
    return ranks.device(args.device)
