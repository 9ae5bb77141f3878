"""A trace file: one JSON line of settings, then one line a finished step, with every candidate tried.

Written as the search goes, so it is also what an interrupted run resumes from.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.algorithm import Decision
from calibration.errors import CalibrationError
from calibration.sensitivity import Sensitivity
from calibration.trace import Searched, Trace, decision_line, read_lines, sensitivity_line
from plans.files import write_text

FORMAT = "ditfastattn-trace"


def trace_path(plan_path: Path) -> Path:
    """Where the trace of a plan lies: beside it."""
    return plan_path.with_name(plan_path.name.removesuffix(".json") + ".trace.jsonl")


def partial_path(trace: Path) -> Path:
    """What a trace is called while the search runs."""
    return trace.with_name(trace.name + ".partial")


class Journal:
    """Appends what was found to a trace file; :meth:`finish` is called when the plan stands.

    Args:
        path: the trace's final path; while the search runs the file is called ``<path>.partial``.
        header: what the decisions depend on; a resumed run must have the same.
    """

    def __init__(self, path: Path, header: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.partial = partial_path(path)
        self.header = json.loads(json.dumps({"format": FORMAT, "version": 1, **header}))
        self.trace = Trace()
        if self.partial.exists() and not resume:
            raise CalibrationError(
                f"{self.partial} is an interrupted calibration: go on with --resume, or delete it to begin anew"
            )
        if self.partial.exists():
            self.trace = self._read_partial()
        elif self.path.exists():
            header, finished = _read(path)
            self._refuse_other_plan(header)
            self.trace = finished if resume else Trace()
        self._begun = False  # nothing is written before the first decision: a run that fails at once leaves no file

    @property
    def decisions(self) -> list[Decision]:
        """Of the search that became the plan, or of the last one begun."""
        return self.trace.decisions

    def append(self, decision: Decision) -> None:
        if not self.trace.searches:
            self.trace.searches.append(Searched())
        decisions = self.trace.searches[-1].decisions
        decisions.append(decision)
        self._write(decision_line(len(decisions) - 1, decision))

    def measured(self, sensitivity: Sensitivity) -> None:
        self.trace.sensitivities.append(sensitivity)
        self._write(sensitivity_line(len(self.trace.sensitivities) - 1, sensitivity))

    def begin_search(self, threshold: float) -> None:
        """The decisions that follow are of another search."""
        self.trace.searches.append(Searched(threshold))
        self._write({"search": threshold})

    def achieved(self, drift: tuple[float, ...]) -> None:
        """What was measured of the last search's plan."""
        self.trace.searches[-1].achieved = drift
        self._write({"achieved": list(drift)})

    def choose(self, search: int) -> None:
        """Which search became the plan."""
        if self.trace.chosen is None:
            self.trace.chosen = search
            self._write({"chosen": search})

    def _write(self, line: dict[str, Any]) -> None:
        """Adds the line of what the trace has just got."""
        if not self._begun:
            self._write_all()
            return
        with open(self.partial, "a") as file:
            file.write(json.dumps(line) + "\n")

    def _write_all(self) -> None:
        write_text(self.partial, "".join(json.dumps(line) + "\n" for line in (self.header, *self.trace.lines())))
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

    def _read_partial(self) -> Trace:
        try:
            lines = list(_lines(self.partial))
            if not lines:
                return Trace()  # killed before the first line was whole
            trace = read_lines(lines[1:])
            lines[0].keys()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"{self.partial} is damaged ({error!r}): delete it to begin anew") from error
        if lines[0] != self.header:
            changed = _changed(lines[0], self.header)
            raise CalibrationError(
                f"{self.partial} was begun with other settings ({', '.join(changed)}): resume with the same command, "
                "or delete it to begin anew"
            )
        return trace


def read_trace(path: Path) -> tuple[dict[str, Any], list[Decision]]:
    """Header and decisions of a finished trace.

    Raises:
        CalibrationError: missing or not a trace.
    """
    header, trace = _read(path)
    return header, trace.decisions


def _read(path: Path) -> tuple[dict[str, Any], Trace]:
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
        return lines[0], read_lines(lines[1:])
    except (IndexError, KeyError, TypeError, ValueError) as error:
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
