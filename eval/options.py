"""Command line options that the metrics share."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ditfastattn.errors import MetricError
from eval.inception_weights import VARIABLE
from eval.networks import INCEPTION, LITE0
from eval.ranks import Ranks


def add_network(p: argparse.ArgumentParser) -> None:
    p.add_argument("--network", default=INCEPTION, help=f"{INCEPTION} (the default), {LITE0}, or module:callable")
    p.add_argument("--weights", type=Path, help=f"Inception's weights (else ${VARIABLE}, else fetched once)")
    p.add_argument("--batch", type=int, default=64, help="images a forward pass (64)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def device_of(args: argparse.Namespace, ranks: Ranks) -> str:
    """This rank's device.

    Raises:
        MetricError: it is not there, or the batch is below 1.
    """
    if args.batch < 1:
        raise MetricError(f"--batch {args.batch}; expected at least 1")
    device = f"cuda:{ranks.local}" if args.device == "cuda" and ranks.world > 1 else args.device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MetricError(f"--device {args.device} cannot be used ({reason}); expected cpu or cuda") from None
    return str(device)
