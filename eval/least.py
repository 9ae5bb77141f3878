"""Numbers of a command's options that make no measurement."""

import argparse
from collections.abc import Mapping

from ditfastattn.errors import DitFastAttnError


def check_least(args: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Every option, or each number of its list, against the least that it may be.

    Raises:
        DitFastAttnError: one is below; as one sentence.
    """
    for name, bound in least.items():
        given = getattr(args, name)
        for number in given if isinstance(given, list) else [given]:
            if number < bound:
                raise DitFastAttnError(f"--{name.replace('_', '-')} must be at least {bound}, got {number}")
