"""The text of a plan file: strict JSON with a digest, one grid row per line.

A file is `{"format": "ditfastattn-plan", "version": 1, <the fields of Plan>, "digest": "sha256:..."}`. The digest is
the SHA-256 of everything else as canonical JSON: keys sorted, no spaces, ASCII only. It says that a file is what was
saved; it does not say who saved it.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NoReturn

from plans.errors import PlanError

FORMAT = "ditfastattn-plan"
VERSION = 1

_MAX_DEPTH = 16  # a plan needs 5
_TOO_DEEP = "is nested too deeply to be a plan; expected a plan saved by plans.save"

Document = dict[str, Any]


class _NotPlain(ValueError):
    """Valid for Python's JSON reader, refused by ours."""


def parse(text: str, source: str) -> Document:
    """Strict JSON to a dict: no NaN or Infinity, no number out of range, no key twice.

    Raises:
        PlanError: anything else, with its place in the text where there is one.
    """
    if not text.strip():
        raise PlanError(f"{source} is empty; expected a plan in JSON, so save or copy it again")
    try:
        document = json.loads(
            text,
            object_pairs_hook=_no_key_twice,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short_integer,
        )
    except _NotPlain as error:
        raise PlanError(f"{source} {error}") from None
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{source} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "expected a plan saved by plans.save"
        ) from None
    except RecursionError:
        raise PlanError(f"{source} {_TOO_DEEP}") from None
    _check_values(document, source)
    if not isinstance(document, dict):
        raise PlanError(f"{source} holds a JSON {_json_type(document)}; expected an object with the keys of a plan")
    return document


def seal(document: Document) -> Document:
    """The same document with the digest of everything else in it, as the last key."""
    body = {key: value for key, value in document.items() if key != "digest"}
    return body | {"digest": digest(body)}


def digest(document: Document) -> str:
    """The text "sha256:" and 64 hex digits over everything in the document but its digest."""
    body = {key: value for key, value in document.items() if key != "digest"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()


def write(document: Document) -> str:
    """JSON indented by two, except that a list of plain values stays on one line: a grid row is a line."""
    return _indented(document, "") + "\n"


def _indented(value: Any, margin: str) -> str:
    inner = margin + "  "
    if isinstance(value, dict) and value:
        items = [f"{inner}{_plain(key)}: {_indented(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{margin}}}"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        return "[\n" + ",\n".join(f"{inner}{_indented(item, inner)}" for item in value) + f"\n{margin}]"
    return _plain(value)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> Document:
    found: Document = {}
    for key, value in pairs:
        if key in found:
            raise _NotPlain(f"has the key {key!r} twice in one object; keep the one that is meant")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise _NotPlain(f"contains {name}, which is not JSON; every number of a plan is finite, or null where it has none")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _NotPlain(f"contains the number {text[:40]}, which is out of range; every number of a plan is finite")
    return number


def _short_integer(text: str) -> int:
    if len(text) > 40:  # Python's own limit depends on the interpreter's settings
        raise _NotPlain(f"contains an integer of {len(text)} digits; a plan has no such number")
    return int(text)


def _check_values(document: Any, source: str) -> None:
    """Refuse what is valid JSON but would trip later steps: deep nesting, and halves of characters like \\ud800."""
    waiting = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise PlanError(f"{source} {_TOO_DEEP}")
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                half = f"\\u{ord(value[error.start]):04x}"
                raise PlanError(f"{source} contains {half}, half of a character; write the whole character") from None
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]


def _json_type(value: object) -> str:
    names = {
        list: "array",
        str: "string",
        int: "number",
        float: "number",
        bool: "boolean",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
