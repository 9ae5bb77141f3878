"""Files read with a reason when they cannot be, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from plans.errors import PlanError

MAX_BYTES = 32 * 2**20  # a plan of 1000 steps x 60 layers takes about 2 MiB


def read_text(path: Path) -> str:
    """The text of a plan file.

    Raises:
        PlanError: it is not there, not readable, too large, or anything but text.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise PlanError(f"{path} is a folder; name the plan file in it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait for ever
            raise PlanError(f"{path} is not a regular file; save the plan to a file first")
        if status.st_size > MAX_BYTES:
            raise PlanError(
                f"{path} has {status.st_size} bytes, more than the {MAX_BYTES} a plan may have; "
                "check that it is the right file"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist; check the path") from None
    except PermissionError:
        raise PlanError(f"{path} may not be read; check its permissions") from None
    except PlanError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise PlanError(f"{path} cannot be read ({_reason(error)}); check the path and the disk") from None
    return decode(data, str(path))


def decode(data: bytes, source: str) -> str:
    """UTF-8 text, or a PlanError that says what the bytes seem to be."""
    # A pickle of protocol 2 or later starts with 0x80 and its protocol; torch.save writes a zip file.
    if len(data) > 1 and data[0] == 0x80 and data[1] <= 5:
        raise PlanError(f"{source} is a pickle, which could run code and is never loaded; expected a plan in JSON")
    if data.startswith(b"PK\x03\x04"):
        raise PlanError(f"{source} is a zip archive, perhaps of torch.save, never loaded; expected a plan in JSON")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(
            f"{source} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}); expected a plan in JSON"
        ) from None
    if "\0" in text:
        raise PlanError(f"{source} is a binary file (it contains NUL bytes); expected a plan in JSON")
    return text


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with `write_whole`, on the disk when this returns."""

    def write(beside: Path) -> None:
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then rename it; the folder is made.

    Raises:
        PlanError: the file cannot be written, or is a folder, a device or a pipe; what was there before still is, and
            nothing else.
    """
    target = Path(os.path.realpath(path))  # replace the file behind a link, not the link
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    if target.is_dir():
        raise PlanError(f"{path} is a folder; name the file to write in it")
    if target.exists() and not target.is_file():  # a device or a pipe would be replaced
        raise PlanError(f"{path} is not a regular file; name a file to write instead")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(beside)
            if target.exists():
                shutil.copymode(target, beside)
            os.replace(beside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    except OSError as error:
        kept = "the file there before is unchanged" if target.exists() else "nothing was left behind"
        raise PlanError(f"{path} cannot be written ({_reason(error)}); {kept}") from None


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
