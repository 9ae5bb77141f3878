"""Rows that a pareto.json has, followed again: times and distances measured anew, pictures drawn anew, all else stays.

A row is followed by what its method and setting say: a rule, a threshold of SmoothCache (whose errors are measured
anew), settings of DBCache, or the file of a plan that was found. Plans that no file keeps are left out, and so are
those that are not the row's: by steps and MACs, and where they were found by note and digest too. DBCache tells its
MACs only as it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calibration.smoothcache import smoothcache_errors
from ditfastattn.errors import DitFastAttnError
from eval import pareto_fd, pareto_file, pareto_grid, pareto_table
from eval.arguments.pareto import SHARES
from eval.pareto_bench import Bench, Way, share
from eval.pareto_cache_dit import DualBlockCache
from eval.pareto_rivals import cache_dit, rivals
from eval.pareto_time import Stopwatch, timed_as
from plans import Plan, PlanError, load, make
from plans.macs import total_macs

NEAR = 0.05  # percent of the base's MACs, within which a plan is the row's
FOUND = {
    "ours": "{}x",
    "ours, attention only": "{}x-attention",
    "DiTFastAttn": "mrae-{}",
}  # methods whose plans are kept


class Known:
    """The ways of sampling that rows of one number of base steps stand for.

    Args:
        plans: folder of the plans that ``python -m eval pareto`` saved.
    """

    def __init__(self, bench: Bench, base: int, plans: Path) -> None:
        self._bench, self._base, self._plans = bench, base, plans
        self._by_rule = {("full", "uncompressed"): (None, base)} | {
            (method, setting): (way, steps) for method, setting, way, steps in self._others()
        }
        self._errors = cache(lambda: smoothcache_errors(bench.pipe, bench.settings(base)))

    def _others(self) -> Iterator[tuple[str, str, Way, int]]:
        yield from rivals(self._bench, self._base)
        yield from cache_dit(self._bench, self._base)

    def _file(self, row: dict[str, Any]) -> Path:
        """As the search names a plan, or as it ships."""
        asked = row["setting"].partition(" x")[0].removeprefix("mrae ")
        names = [pareto_file.plan_name(row["model"], self._base, FOUND[row["method"]].format(asked))]
        if row["method"] == "ours":
            names.append(f"{row['model']}-dpm{self._base}-speedup-{asked}.json")
        found = [self._plans / name for name in names if (self._plans / name).exists()]
        if not found:
            raise DitFastAttnError(f"{self._plans} has no {' or '.join(names)}; name the folder with --plans")
        return found[0]

    def way(self, row: dict[str, Any]) -> tuple[Way, int]:
        """What samples as the row says, and its steps.

        Raises:
            DitFastAttnError: nothing does; as the reason.
        """
        method, setting = row["method"], row["setting"]
        way, steps = self._by_rule.get((method, setting), (None, 0))
        if method == "SmoothCache":
            plan, errors = self._errors()
            way, steps = make.smoothcache(plan, errors, float(setting.removeprefix("threshold "))), self._base
        elif method in FOUND:
            way = load(file := self._file(row))
            steps = way.steps
            if not way.note.endswith(setting.partition(": ")[2]):
                raise DitFastAttnError(f"{file} is of another search: its note is {way.note!r}")
            if row.get(pareto_file.PLAN) not in (None, pareto_file.digest(way)):
                raise DitFastAttnError(f"{file} is of another search: the row's digest begins {row[pareto_file.PLAN]}")
        if steps != row["steps"]:
            here = f"made again it has {steps} steps, the row {row['steps']}"
            raise DitFastAttnError(here if steps else "this version has no such way, or its package is not here")
        if not isinstance(way, DualBlockCache):
            macs = 100 * (1.0 if way is None else share(total_macs(way))) * steps / self._base
            if abs(macs - row["total_macs"]) > NEAR:
                raise DitFastAttnError(f"made again it has {macs:.2f} % of the MACs, the row {row['total_macs']:.2f} %")
        return way, steps


def _check_as_before(run: dict[str, Any], record: dict[str, Any], file: Path) -> None:
    """Raises DitFastAttnError for another guidance scale, or for times of another batch or dtype, than the file's."""
    if run.get("guidance", record.get("guidance")) != record.get("guidance"):
        raise DitFastAttnError(f"the rows of {file} are at guidance {run['guidance']:g}: give it as --guidance")
    before, now = (told.get("timed", "").rpartition("; ")[2] for told in (run, record))
    if before and now and before != now:
        raise DitFastAttnError(f"{file} was timed with {before}, and this is {now}: give --time-batch and --time-dtype")


class Again:
    """The rows of one model and number of base steps; the file is written whole after each measurement.

    Args:
        record: of this run, with the model and base steps of the rows.

    Raises:
        DitFastAttnError: the file has no such rows, or they are of another guidance scale or timed otherwise.
    """

    def __init__(self, bench: Bench, record: dict[str, Any], file: Path, plans: Path) -> None:
        self._bench, self._file = bench, file
        told = {name: value for name, value in record.items() if name != "images"}  # none are compared
        self._record, self._result = {**told, "methods": []}, pareto_file.read(file)
        model, base = record["model"], record["base_steps"]
        self._rows = [
            row
            for row in self._result["rows"]
            if (row["model"], row["base_steps"]) == (model, base) and not pareto_file.speed_alone(row)
        ]
        if not self._rows:
            raise DitFastAttnError(f"{file} has no rows of {model} from {base} steps")
        for run in self._result["runs"]:
            if (run["model"], run["base_steps"]) == (model, base):
                _check_as_before(run, record, file)
        self._known = Known(bench, base, plans)

    def times(self, stopwatch: Stopwatch) -> None:
        """Of all rows, measured anew."""
        for row, way, steps in self._followed(self._rows):
            try:
                faster = stopwatch.speedup(timed_as(way), steps)
            except Exception as error:
                if isinstance(way, Plan) and not isinstance(error, (DitFastAttnError, PlanError, RuntimeError)):
                    raise
                self._left_out(row, error)  # no reason to lose the others
                continue
            before = "not timed" if row["speedup"] is None else pareto_table.times(row)
            name = self._record["run"]
            row.update(faster.as_row(), **{pareto_file.RUN: row.get(pareto_file.RUN), pareto_file.TIMED_IN: name})
            self._write(row)
            print(f"{self._name(row)} {pareto_table.times(row)}, before {before}", flush=True)

    def distances(self, distance: pareto_fd.Distance) -> None:
        """Fréchet distances, measured anew of the rows that `pareto_fd.chosen` names."""
        drawing = pareto_fd.Drawing(self._bench)
        for row, way, steps in self._followed(pareto_fd.chosen(self._rows, self._bench.args.fd_shares)):
            row.update({"fd": distance(drawing.pixels(way, steps)), pareto_file.FD_IN: self._record["run"]})
            self._write(row)
            print(f"{self._name(row)} distance {row['fd']:.2f}", flush=True)

    def picture(self, file: Path) -> None:
        """The grid of images, drawn anew."""
        bench = self._bench
        shown = list({id(row): row for at in SHARES for row in pareto_file.nearest(self._rows, at)}.values())
        parts = [
            pareto_grid.Shown(row, bench.sampled(way, steps, pareto_grid.COLUMNS).sampled.pixels)
            for row, way, steps in self._followed(tqdm(shown, desc="images", leave=False))
        ]
        base = self._record["base_steps"]
        reference = bench.sampled(None, base, pareto_grid.COLUMNS).sampled.pixels
        pareto_grid.save(file, self._record["model"], base, reference, parts, SHARES)

    def _followed(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Way, int]]:
        for row in rows:
            try:
                way, steps = self._known.way(row)
            except (DitFastAttnError, ValueError) as error:  # a broken plan, a setting without a number
                self._left_out(row, error)
                continue
            yield row, way, steps

    def _left_out(self, row: dict[str, Any], error: Exception) -> None:
        print(f"{self._name(row)} left as it is: {' '.join(str(error).split())[:200]}", flush=True)

    @staticmethod
    def _name(row: dict[str, Any]) -> str:
        return f"{row['base_steps']} {row['method']:<30} {row['setting']:<40}"

    def _write(self, row: dict[str, Any]) -> None:
        """With this run's record at the end."""
        record = self._record
        record["methods"] = list(dict.fromkeys([*record["methods"], row["method"]]))
        runs = [run for run in self._result["runs"] if run is not record]
        self._result["runs"] = [*runs, record]
        pareto_file.write(self._file, self._result["runs"], [pareto_file.in_order(one) for one in self._result["rows"]])
