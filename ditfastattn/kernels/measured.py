"""What was measured once is kept: in memory, and in one JSON file for all later processes.

The file lies in ``$DITFASTATTN_CACHE``, else in ``~/.cache/ditfastattn``. Losing it costs a few seconds of measuring; a
damaged one is ignored with a warning. (``triton_tuning`` still has its own copy of this and could move over.)
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from plans import PlanError
from plans.files import write_text

log = logging.getLogger(__name__)

Entry = dict[str, Any]  # JSON

_known: dict[Path, dict[str, Entry]] = {}  # by file, so that another $DITFASTATTN_CACHE starts afresh


class Measured:
    """Entries by key.

    Args:
        name: of the file, ``NAME-VERSION.json``.
        version: of what an entry means: entries of another version say nothing.
    """

    def __init__(self, name: str, version: int) -> None:
        self._name = name
        self._version = version

    @property
    def file(self) -> Path:
        folder = os.environ.get("DITFASTATTN_CACHE") or Path.home() / ".cache" / "ditfastattn"
        return Path(folder) / f"{self._name}-{self._version}.json"

    def get(self, key: str) -> Entry | None:
        """The entry; None if there is none or its file cannot be understood, which is warned of."""
        return self._entries().get(key)

    def put(self, key: str, entry: Entry, on_disk: bool = True) -> None:
        """Keep ``entry`` (anything JSON can hold). A folder that cannot be written is warned of, and no error."""
        entries = self._entries()
        entries[key] = entry
        if not on_disk:
            return
        content = {"version": self._version, "entries": dict(sorted((self._read() | {key: entry}).items()))}
        try:
            write_text(self.file, json.dumps(content, indent=1) + "\n")
        except PlanError as error:
            log.warning("what was measured is kept for this process only: %s", error)

    def _entries(self) -> dict[str, Entry]:
        file = self.file
        if file not in _known:
            _known[file] = self._read()
        return _known[file]

    def _read(self) -> dict[str, Entry]:
        try:
            content = json.loads(self.file.read_text())
            if content["version"] != self._version:
                raise ValueError(f"it has version {content['version']}, not {self._version}")
            return {str(key): dict(entry) for key, entry in content["entries"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is ignored (%s: %s): it is measured again", self.file, type(error).__name__, error)
            return {}
