"""The device of a metric's command."""

from __future__ import annotations

import argparse

from ditfastattn.errors import MetricError
from ditfastattn.ranks import Ranks


def device_of(args: argparse.Namespace, ranks: Ranks) -> str:
    """This rank's device.

    Raises:
        MetricError: the batch is below 1.
        RankError: there is no such device, or not one for each rank.
    """
    if args.batch < 1:
        raise MetricError(f"--batch {args.batch}; expected at least 1")
    return ranks.device(args.device)
