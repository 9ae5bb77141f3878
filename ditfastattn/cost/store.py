"""Measured tables on disk: ``block-times-2.json`` in ``$DITFASTATTN_CACHE``, else in ``~/.cache/ditfastattn``.

Losing the file costs a few seconds of measuring; a damaged one is ignored with a warning, and replaced.
"""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from plans import PlanError
from plans.files import write_text

log = logging.getLogger(__name__)

VERSION = 2  # of the file and of what is timed


def cache_file() -> Path:
    folder = os.environ.get("DITFASTATTN_CACHE") or Path.home() / ".cache" / "ditfastattn"
    return Path(folder) / f"block-times-{VERSION}.json"


def read(file: Path) -> list[dict[str, Any]]:
    """Every table, as {"key": {...}, "microseconds": {row: number}, "date": text}; none if the file is damaged."""
    try:
        content = json.loads(file.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}, expected {VERSION}")
        for table in content["tables"]:
            numbers = table["microseconds"].values()
            if not (isinstance(table["key"], dict) and isinstance(table["date"], str) and numbers):
                raise ValueError("a table without its key or date")
            if not all(isinstance(us, int | float) and math.isfinite(us) and us >= 0 for us in numbers):
                raise ValueError("a time that is no number, or negative")
        tables: list[dict[str, Any]] = content["tables"]
        return tables
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is ignored (%s): blocks are measured again", file, error)
        return []


def write(file: Path, table: dict[str, Any]) -> None:
    """Adds a table in place of one with the same key, the file replaced in one step. A full disk is no error."""
    tables = [other for other in read(file) if other["key"] != table["key"]]
    try:
        write_text(file, json.dumps({"version": VERSION, "tables": [*tables, table]}, indent=1) + "\n")
    except PlanError as error:
        log.warning("the measured block times could not be kept: %s", error)
