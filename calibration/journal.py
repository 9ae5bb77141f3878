"""The trace of a calibration: one JSON line of settings, then one line a finished step, with every candidate tried.

Written as the search goes, so it is also what an interrupted run resumes from.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration.algorithm import Decision, Trial
from calibration.errors import CalibrationError
from plans import Method
from plans.files import write_text

FORMAT = "ditfastattn-trace"


def trace_path(plan_path: Path) -> Path:
    """Where the trace of a plan lies: beside it."""
    return plan_path.with_suffix(".trace.jsonl")


def partial_path(trace: Path) -> Path:
    """What a trace is called while the search runs."""
    return trace.with_name(trace.name + ".partial")


class Journal:
    """Appends decisions to a trace file; :meth:`finish` is called when the plan stands.

    Args:
        path: the trace's final path; while the search runs the file is called ``<path>.partial``.
        header: what the decisions depend on; a resumed run must have the same.
    """

    def __init__(self, path: Path, header: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.partial = partial_path(path)
        self.header = json.loads(json.dumps({"format": FORMAT, "version": 1, **header}))
        self.decisions: list[Decision] = []
        if self.partial.exists() and not resume:
            raise CalibrationError(
                f"{self.partial} is an interrupted calibration: go on with --resume, or delete it to begin anew"
            )
        if self.partial.exists():
            self.decisions = self._read_partial()
        elif self.path.exists():
            header, finished = read_trace(self.path)
            self._refuse_other_plan(header)
            self.decisions = finished if resume else []
        self._begun = False  # nothing is written before the first decision: a run that fails at once leaves no file

    def append(self, decision: Decision) -> None:
        self.decisions.append(decision)
        if not self._begun:
            self._write_all()
            return
        with open(self.partial, "a") as file:
            file.write(json.dumps(_encode(len(self.decisions) - 1, decision)) + "\n")

    def _write_all(self) -> None:
        lines = [self.header, *(_encode(step, decision) for step, decision in enumerate(self.decisions))]
        write_text(self.partial, "".join(json.dumps(line) + "\n" for line in lines))
        self._begun = True

    def _refuse_other_plan(self, header: dict[str, Any]) -> None:
        """A finished trace of other settings belongs to a plan that must not be lost."""
        changed = _changed(header, self.header)
        if changed:
            raise CalibrationError(
                f"{self.path} and its plan have other settings ({', '.join(changed)}): name another --output, "
                "or delete them"
            )

    def finish(self) -> None:
        if not self._begun:  # every step was taken over
            self._write_all()
        os.replace(self.partial, self.path)

    def _read_partial(self) -> list[Decision]:
        try:
            lines = list(_lines(self.partial))
            if not lines:
                return []  # killed before the first line was whole
            decisions = [_decode(line) for line in lines[1:]]
            lines[0].keys()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"{self.partial} is damaged ({error!r}): delete it to begin anew") from error
        if lines[0] != self.header:
            changed = _changed(lines[0], self.header)
            raise CalibrationError(
                f"{self.partial} was begun with other settings ({', '.join(changed)}): resume with the same command, "
                "or delete it to begin anew"
            )
        return decisions


def read_trace(path: Path) -> tuple[dict[str, Any], list[Decision]]:
    """Header and decisions of a finished trace.

    Raises:
        CalibrationError: missing or not a trace.
    """
    try:
        lines = list(_lines(path))
    except FileNotFoundError:
        raise CalibrationError(
            f"there is no trace at {path}: a calibration writes it beside its plan; the plans that ship have none"
        ) from None
    except UnicodeDecodeError:
        lines = []
    if not lines or not isinstance(lines[0], dict) or lines[0].get("format") != FORMAT:
        raise CalibrationError(f"{path} is not a calibration trace")
    try:
        return lines[0], [_decode(line) for line in lines[1:]]
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{path} is a damaged calibration trace ({error})") from error


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def _lines(path: Path) -> Iterator[Any]:
    """The whole lines; a last one torn by a kill is dropped."""
    with open(path) as file:
        for text in file:
            try:
                yield json.loads(text)
            except json.JSONDecodeError:
                return


def _encode(step: int, decision: Decision) -> dict[str, Any]:
    return {
        "step": step,
        "methods": list(decision.methods),
        "losses": list(decision.losses),
        "trials": [asdict(trial) for trial in decision.trials],
    }


def _decode(line: dict[str, Any]) -> Decision:
    return Decision(
        methods=tuple(Method(name) for name in line["methods"]),
        losses=tuple(line["losses"]),
        trials=tuple(Trial(t["layer"], Method(t["method"]), t["loss"], t["limit"]) for t in line["trials"]),
    )
