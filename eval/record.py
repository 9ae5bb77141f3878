"""How a result file names the command that made it."""

import shlex
import sys
from collections.abc import Sequence


def command_line(name: str, argv: Sequence[str] | None, folders: Sequence[str] = ("--out",)) -> str:
    """``python -m eval NAME`` with its options as given, those left out that name folders of one machine.

    Args:
        argv: the options after the command's name; None for those of this process.
    """
    given = list(sys.argv[2:] if argv is None else argv)
    kept = []
    skip = False
    for word in given:
        if not skip and word not in folders and not word.startswith(tuple(f"{folder}=" for folder in folders)):
            kept.append(word)
        skip = word in folders
    return shlex.join(["python", "-m", "eval", name, *kept])
