"""What a calibration has found so far, and its lines in a trace file.

After the header come, each on a line: sensitivities of the steps (loss ``drift``), then the decisions of the steps.
Under a budget there are several searches: each begins with a line of its threshold and ends with one of the drift that
was measured, and the last line of all tells which of them became the plan.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from calibration.algorithm import Decision, Trial
from calibration.sensitivity import Sensitivity
from plans import Method


@dataclass
class Searched:
    """One search, perhaps unfinished. ``achieved``: drift by batch of other noise; empty until it was measured."""

    threshold: float | None = None  # None: the header's, of the only search
    decisions: list[Decision] = field(default_factory=list)
    achieved: tuple[float, ...] = ()


@dataclass
class Trace:
    """All of a trace but its header."""

    sensitivities: list[Sensitivity] = field(default_factory=list)
    searches: list[Searched] = field(default_factory=list)
    chosen: int | None = None  # of ``searches``, where there may be several

    @property
    def decisions(self) -> list[Decision]:
        """Of the search that became the plan, or of the last one."""
        if not self.searches:
            return []
        return self.searches[-1 if self.chosen is None else self.chosen].decisions

    def lines(self) -> Iterator[dict[str, Any]]:
        for step, sensitivity in enumerate(self.sensitivities):
            yield sensitivity_line(step, sensitivity)
        for search in self.searches:
            if search.threshold is not None:
                yield {"search": search.threshold}
            for step, decision in enumerate(search.decisions):
                yield decision_line(step, decision)
            if search.achieved:
                yield {"achieved": list(search.achieved)}
        if self.chosen is not None:
            yield {"chosen": self.chosen}


def read_lines(lines: Iterable[dict[str, Any]]) -> Trace:
    """The inverse of :meth:`Trace.lines`. Raises KeyError, TypeError, ValueError or IndexError for anything else."""
    trace = Trace()
    for line in lines:
        if "sensitivity" in line:
            trace.sensitivities.append(Sensitivity(**line["sensitivity"]))
        elif "search" in line:
            trace.searches.append(Searched(float(line["search"])))
        elif "achieved" in line:
            trace.searches[-1].achieved = tuple(line["achieved"])
        elif "chosen" in line:
            trace.chosen = int(line["chosen"])
        else:
            if not trace.searches:
                trace.searches.append(Searched())
            trace.searches[-1].decisions.append(_decision(line))
    return trace


def sensitivity_line(step: int, sensitivity: Sensitivity) -> dict[str, Any]:
    return {"step": step, "sensitivity": asdict(sensitivity)}


def decision_line(step: int, decision: Decision) -> dict[str, Any]:
    return {
        "step": step,
        "methods": list(decision.methods),
        "losses": list(decision.losses),
        "trials": [asdict(trial) for trial in decision.trials],
    }


def _decision(line: dict[str, Any]) -> Decision:
    return Decision(
        methods=tuple(Method(name) for name in line["methods"]),
        losses=tuple(line["losses"]),
        trials=tuple(Trial(t["layer"], Method(t["method"]), t["loss"], t["limit"]) for t in line["trials"]),
    )
