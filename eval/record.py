"""How a result file says what made it."""

import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from calibration.calibrate import package_versions


def command_line(name: str, argv: Sequence[str] | None, folders: Sequence[str] = ("--out",)) -> str:
    """``python -m eval NAME`` with its options as given, but for what is of one machine: folders are left out, and of
    absolute paths all but the name.

    Args:
        argv: the options after the command's name; None for those of this process.
    """
    given = list(sys.argv[2:] if argv is None else argv)
    kept = []
    skip = False
    for word in given:
        if not skip and word not in folders and not word.startswith(tuple(f"{folder}=" for folder in folders)):
            kept.append(_without_folders(word))
        skip = word in folders
    return shlex.join(["python", "-m", "eval", name, *kept])


def _without_folders(word: str) -> str:
    """An option or its value; of an absolute path the name."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)


def device_name(device: str) -> str:
    """The GPU's name, or the CPU's kind."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU"


def record(command: str, device: str, dtype: str) -> dict[str, Any]:
    """What every result of one device says of itself; the date is that of UTC."""
    return {
        "command": command,
        "device": device,
        "dtype": dtype,
        "versions": package_versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def source_line(result: dict[str, Any], file: str) -> str:
    """Where a table comes from: command, device, versions, date, file."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{result['command']}` on one {result['device']}; {versions}; {result['date']}; [{file}]({file})."
