"""Plans to files and back. Nothing in a file can run code, and a file is either whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from pydantic import ValidationError

from plans import format as text_format
from plans.errors import PlanError, explain
from plans.format import FORMAT, VERSION, Document
from plans.schema import Plan

MAX_BYTES = 32 * 2**20  # a plan of 1000 steps x 60 layers takes about 2 MiB


def dumps(plan: Plan) -> str:
    """The text of a plan file, sealed; equal plans of one Python process give equal text.

    Raises:
        PlanError: the plan breaks a rule, which only `model_copy` or `model_construct` can bring about.
    """
    try:
        document = {"format": FORMAT, "version": VERSION} | plan.model_dump(mode="json", warnings=False)
        text = text_format.write(text_format.seal(document))
    except ValueError as error:
        raise PlanError(
            f"the plan cannot be written as JSON ({error}); build it again with Plan(...)"
        ) from None
    loads(text, source="the plan to be saved")  # what we write, we can read
    return text


def loads(text: str, source: str = "the text") -> Plan:
    """A plan from the text of a plan file.

    Args:
        text: what `dumps` gave.
        source: what to call it in an error, usually the file's path.

    Raises:
        PlanError: one sentence for anything wrong with it.
    """
    return _read(text_format.parse(text, source), source, sealed=True)


def save(plan: Plan, path: str | PathLike[str]) -> None:
    """Write a plan file whole or not at all; its folder is made, and a file already there is replaced last.

    Raises:
        PlanError: the file cannot be written; what was there before still is.
    """
    _write_whole(dumps(plan), Path(path))


def load(path: str | PathLike[str]) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: one sentence for anything wrong with it.
    """
    return loads(_text_of(Path(path)), source=str(path))


def reseal(path: str | PathLike[str]) -> tuple[Plan, bool]:
    """Check a plan file that was edited by hand on purpose and write it back with the digest it needs.

    Returns:
        The plan, and whether the file had to change.

    Raises:
        PlanError: the file breaks a rule, whatever its digest; it is left as it is.
    """
    text = _text_of(Path(path))
    plan = _read(text_format.parse(text, str(path)), str(path), sealed=False)
    sealed = dumps(plan)
    if sealed != text:
        _write_whole(sealed, Path(path))
    return plan, sealed != text


def _read(document: Document, source: str, *, sealed: bool) -> Plan:
    if "format" not in document:
        raise PlanError(f'{source} has no "format"; expected a plan file with "format": "{FORMAT}"')
    if document["format"] != FORMAT:
        raise PlanError(f"{source} has the format {document['format']!r}; expected {FORMAT!r}")
    if "version" not in document:
        raise PlanError(f'{source} has no "version"; expected a plan file of version {VERSION}')
    version = document["version"]
    if type(version) is not int or version < 1:
        raise PlanError(f"{source} has the version {version!r}; expected a whole number from 1 to {VERSION}")
    if version not in _READERS:
        raise PlanError(
            f"{source} has version {version}, made by a newer ditfastattn; this one reads up to version {VERSION}, "
            "so upgrade ditfastattn"
        )
    try:
        plan = _READERS[version](document)
    except ValidationError as error:
        raise PlanError(f"{source} is not a valid plan: {explain(error)}") from None
    if sealed:
        _check_digest(document, source)
    return plan


def _read_1(document: Document) -> Plan:
    return Plan.model_validate(
        {key: document[key] for key in document.keys() - {"format", "version", "digest"}}
    )


# One reader per version that ever shipped: each turns its own document into today's Plan.
_READERS: dict[int, Callable[[Document], Plan]] = {1: _read_1}


def _check_digest(document: Document, source: str) -> None:
    found = document.get("digest")
    advice = "get the file again, or run `python -m plans seal FILE` if it was edited on purpose"
    if found is None:
        raise PlanError(f"{source} has no digest, so nothing shows that it is what was saved; {advice}")
    if found != text_format.digest(document):
        raise PlanError(f"{source} does not match its digest: it changed after it was saved; {advice}")


def _text_of(path: Path) -> str:
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
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise PlanError(f"{path} cannot be read ({_reason(error)}); check the path and the disk") from None
    return _decoded(data, path)


def _decoded(data: bytes, path: Path) -> str:
    # A pickle of protocol 2 or later starts with 0x80 and its protocol; torch.save writes a zip file.
    if len(data) > 1 and data[0] == 0x80 and data[1] <= 5:
        raise PlanError(
            f"{path} is a pickle, which could run code and is never loaded; expected a plan in JSON"
        )
    if data.startswith(b"PK\x03\x04"):
        raise PlanError(
            f"{path} is a zip archive, perhaps of torch.save, never loaded; expected a plan in JSON"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}); expected a plan in JSON"
        ) from None
    if "\0" in text:
        raise PlanError(f"{path} is a binary file (it contains NUL bytes); expected a plan in JSON")
    return text


def _write_whole(text: str, path: Path) -> None:
    target = Path(os.path.realpath(path))  # replace the file behind a link, not the link
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.is_dir():
            raise PlanError(f"{path} is a folder; name the file to write in it")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
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
