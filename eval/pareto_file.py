"""pareto.json: the rows of all models, and how each model's were measured."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plans import Plan, dumps
from plans import format as text_format
from plans.files import write_text

NAME = "pareto.json"
TIMES = ("speedup", "speedup_low", "speedup_high")
MEASURED = ("model", "method", "setting", "base_steps", "steps", "total_macs", "attention_macs", *TIMES, "psnr", "ssim",
            "latent_rel_l2", "fd")  # fmt: skip
RUN, TIMED_IN, FD_IN = "run", "timed_in", "fd_in"  # the records that a row, its times and its distance are of
PLAN = "plan"  # of a row: the digest of the plan that was followed, where there was one
KEYS = (*MEASURED, PLAN, RUN, TIMED_IN, FD_IN)
SPEED_ALONE = "random weights, speed alone"  # at the end of a setting: there are no images to compare


def read(file: Path) -> dict[str, Any]:
    """``runs``: how the rows of a model, of base steps and of methods were measured; ``rows``, in older files without
    quartiles, and without the run that they are of."""
    return json.loads(file.read_text()) if file.exists() else {"runs": [], "rows": []}


def run_name() -> str:
    """Of a record and its rows: when the run began (UTC), which is the same in whatever file they end."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def digest(plan: Any) -> str | None:
    """The first hex digits of a digest of what a plan does, not of how it was found; None for what is no plan."""
    if not isinstance(plan, Plan):
        return None
    does = json.loads(dumps(plan))
    sites = {name: {key: site.get(key) for key in ("methods", "window")} for name, site in does["sites"].items()}
    told = {key: value for key, value in does.items() if key not in ("calibration", "note", "digest")}
    return text_format.digest(told | {"sites": sites}).removeprefix("sha256:")[:12]


def plan_name(model: str, base: int, what: str) -> str:
    """Of the file of a plan that was found."""
    return f"{model}-{base}-{what}.json"


class Table:
    """Rows of one model and base, written into the file with all others as they come.

    With the first new row of a method goes what the file had of it, for this model and base. A speedup or distance that
    was not measured anew stays as it was for the same setting and images, and with it the record of how it came about.

    Args:
        record: of the rows that are added; its ``run`` is put into them.
    """

    def __init__(self, file: Path, record: dict[str, Any]) -> None:
        self._file, self._record = file, {**record, "methods": []}
        self._written: dict[str, Any] | None = None  # the record, as it stands in the file
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any], plan: str | None = None) -> None:
        """``plan``: the digest of the plan that was followed."""
        assert tuple(row) == MEASURED
        name = self._record[RUN]
        row.update({PLAN: plan, RUN: name, TIMED_IN: None if row["speedup"] is None else name, FD_IN: None})
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Rows that were changed too, the file whole or not at all."""
        before = read(self._file)
        methods = list(dict.fromkeys(row["method"] for row in self.rows))
        self._record["methods"] = methods

        def mine(entry: dict[str, Any]) -> bool:
            return all(entry[name] == self._record[name] for name in ("model", "base_steps"))

        known = {_same(row): row for row in before["rows"] if mine(row)}
        rows = [_filled_up(row, known.get(_same(row), row)) for row in self.rows]
        runs = []
        for run in (run for run in before["runs"] if run != self._written):
            used = {new["method"] for new, row in zip(rows, self.rows, strict=True) if _is_source(run, new, row)}
            left = [name for name in run["methods"] if not mine(run) or name not in methods or name in used]
            runs += [{**run, "methods": left}] if left else []
        kept = [row for row in before["rows"] if not mine(row) or row["method"] not in methods]
        runs, rows = [*runs, self._record], [*kept, *rows]
        self._written = dict(self._record)
        write(self._file, runs, rows)


def _same(row: dict[str, Any]) -> tuple[Any, ...]:
    """Equal for what was measured before: a search may find another plan of the same name."""
    return tuple(row[name] for name in MEASURED if name not in (*TIMES, "fd"))


def _filled_up(row: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    if None not in (row[PLAN], before.get(PLAN)) and row[PLAN] != before[PLAN]:
        return row  # of another plan, which happens to do as well
    times = {name: before.get(name) for name in (*TIMES, TIMED_IN)} if row["speedup"] is None else {}
    return row | times | ({"fd": before["fd"], FD_IN: before.get(FD_IN)} if row["fd"] is None else {})


def _is_source(run: dict[str, Any], filled: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a record may be that of what was filled into a row; rows of older files do not say of which."""
    return any(
        filled[what] is not None
        and row[what] is None
        and (run.get(RUN) == filled[where] if filled[where] else how in run)
        for what, where, how in (("speedup", TIMED_IN, "timed"), ("fd", FD_IN, "fd"))
    )


def write(file: Path, runs: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Whole or not at all; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, _text(runs, rows))


def in_order(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its fields in the order of :data:`KEYS`, as far as it has them, and others after them."""
    return {name: row[name] for name in (*KEYS, *row) if name in row}


def _text(runs: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """A line for each, so that a change of one is a change of one line."""
    parts = [
        f' "{name}": [\n' + ",\n".join("  " + json.dumps(entry, allow_nan=False) for entry in entries) + "\n ]"
        for name, entries in (("runs", runs), ("rows", rows))
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def speed_alone(row: dict[str, Any]) -> bool:
    """Whether a row is of random weights."""
    return str(row["setting"]).endswith(SPEED_ALONE)


def without_other_searches(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the rows of ours that were asked for one speedup the first alone, which is the plan that was kept."""
    found: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        ours = row["method"].startswith("ours")
        asked = (row["model"], row["base_steps"], row["method"], row["setting"].partition(" x")[0])
        found.setdefault(asked if ours else number, row)
    return list(found.values())


def nearest(rows: list[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """Of every method, in the order of ``rows``, the row whose MACs are nearest to a share, of several the best.

    Methods that come no nearer than a tenth of the base's MACs are left out, and so is the uncompressed row.
    """
    found: dict[str, tuple[float, float, dict[str, Any]]] = {}
    for row in rows:
        off = abs(row["total_macs"] - 100 * share)
        rank = (round(off), row["latent_rel_l2"])
        if off <= 10 and row["method"] != "full" and (row["method"] not in found or rank < found[row["method"]][:2]):
            found[row["method"]] = (*rank, row)
    return [row for *_, row in found.values()]
