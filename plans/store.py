"""Plans to files and back. Nothing in a file can run code, and a file is either whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from pydantic import ValidationError

from plans import format as text_format
from plans.errors import PlanError, explain
from plans.files import read_text, write_text
from plans.format import FORMAT, VERSION, Document
from plans.schema import Plan

_LIBRARY = Path(__file__).parent / "library"


def dumps(plan: Plan) -> str:
    """The text of a plan file, sealed; equal plans of one Python process give equal text.

    Raises:
        PlanError: the plan breaks a rule, which only `model_copy` or `model_construct` can bring about.
    """
    try:
        document = {"format": FORMAT, "version": VERSION} | plan.model_dump(mode="json", warnings=False)
        text = text_format.write(text_format.seal(document))
    except ValueError as error:
        raise PlanError(f"the plan cannot be written as JSON ({error}); build it again with Plan(...)") from None
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
    write_text(Path(path), dumps(plan))


def load(path: str | PathLike[str]) -> Plan:
    """Read a plan file, or a plan that ships by its name, as "demo-dpm50-mrae-0.05"; a file of that name comes first.

    Raises:
        PlanError: one sentence for anything wrong with it.
    """
    file = _shipped(Path(path)) or Path(path)
    if file == Path(file.name) and file.suffix != ".json" and not file.exists():  # meant as a name
        names = ", ".join(one.stem for one in shipped())
        raise PlanError(f"{file} is neither a plan file nor a plan that ships: those are {names}")
    return loads(read_text(file), source=str(path))


def shipped() -> list[Path]:
    """The files of the plans that ship, each named as its plan."""
    return sorted(_LIBRARY.glob("*.json"))


def _shipped(path: Path) -> Path | None:
    """The file of a plan of the library, if this is the bare name of one and no file."""
    file = _LIBRARY / f"{path.name}.json"
    return file if path == Path(path.name) and not path.exists() and file.is_file() else None


def reseal(path: str | PathLike[str]) -> tuple[Plan, bool]:
    """Check a plan file that was edited by hand on purpose and write it back with the digest it needs.

    Returns:
        The plan, and whether the file had to change.

    Raises:
        PlanError: the file breaks a rule, whatever its digest; it is left as it is.
    """
    text = read_text(Path(path))
    plan = _read(text_format.parse(text, str(path)), str(path), sealed=False)
    sealed = dumps(plan)
    if sealed != text:
        write_text(Path(path), sealed)
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
    return Plan.model_validate({key: document[key] for key in document.keys() - {"format", "version", "digest"}})


# One reader per version that ever shipped: each turns its own document into today's Plan.
_READERS: dict[int, Callable[[Document], Plan]] = {1: _read_1}


def _check_digest(document: Document, source: str) -> None:
    found = document.get("digest")
    advice = "get the file again, or run `python -m plans seal FILE` if it was edited on purpose"
    if found is None:
        raise PlanError(f"{source} has no digest, so nothing shows that it is what was saved; {advice}")
    if found != text_format.digest(document):
        raise PlanError(f"{source} does not match its digest: it changed after it was saved; {advice}")
