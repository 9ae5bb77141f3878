"""Times of rows that a pareto.json has, measured anew: no image is sampled, and all else in them stays.

A row is followed again by what its method and setting say: a rule, a threshold of SmoothCache (whose errors are
measured anew), settings of DBCache, or the file of a plan that was found. Plans that no file keeps are left out, and so
is what does not come to the row's MACs: it is not what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from calibration.smoothcache import smoothcache_errors
from ditfastattn.errors import DitFastAttnError
from eval import pareto_file, pareto_table
from eval.pareto_bench import Bench, Way, share
from eval.pareto_cache_dit import DualBlockCache
from eval.pareto_rivals import cache_dit, rivals
from eval.pareto_time import Stopwatch, timed_as
from plans import load, make
from plans.macs import total_macs

NEAR = 0.05  # percent of the base's MACs, within which a plan is the row's


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

    def _file(self, model: str, speedup: str) -> Path:
        """As the search names a plan, or as it ships."""
        names = f"{model}-{self._base}-{speedup}x.json", f"{model}-dpm{self._base}-speedup-{speedup}.json"
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
        elif method == "ours":
            way = load(self._file(row["model"], setting.partition(" x: ")[0]))
            steps = way.steps
        if not steps:
            raise DitFastAttnError("it would have to be searched for, or its package is not here")
        if not isinstance(way, DualBlockCache):
            macs = 100 * (1.0 if way is None else share(total_macs(way))) * steps / self._base
            if abs(macs - row["total_macs"]) > NEAR:
                raise DitFastAttnError(f"made again it has {macs:.2f} % of the MACs, the row {row['total_macs']:.2f} %")
        return way, steps


def retime(bench: Bench, stopwatch: Stopwatch, record: dict[str, Any], file: Path, plans: Path) -> None:
    """The rows of one model and number of base steps, in place; the file is written whole after each.

    Args:
        record: of this run, with the model and base steps of the rows.

    Raises:
        DitFastAttnError: the file has no such rows.
    """
    result = pareto_file.read(file)
    rows = [row for row in result["rows"] if all(row[name] == record[name] for name in ("model", "base_steps"))]
    rows = [row for row in rows if not pareto_file.speed_alone(row)]
    if not rows:
        raise DitFastAttnError(f"{file} has no rows of {record['model']} from {record['base_steps']} steps")
    known, timed = Known(bench, record["base_steps"], plans), {**record, "methods": []}
    for row in rows:
        name = f"{record['base_steps']} {row['method']:<30} {row['setting']:<40}"
        try:
            way, steps = known.way(row)
            faster = stopwatch.speedup(timed_as(way), steps)
        except (DitFastAttnError, RuntimeError) as error:  # no reason to lose the others
            print(f"{name} not timed anew: {' '.join(str(error).split())[:200]}", flush=True)
            continue
        before = "not timed" if row["speedup"] is None else pareto_table.times(row)
        row.update(faster.as_row(), **{pareto_file.RUN: row.get(pareto_file.RUN), pareto_file.TIMED_IN: record["run"]})
        timed["methods"] = list(dict.fromkeys([*timed["methods"], row["method"]]))
        result["runs"] = [*(run for run in result["runs"] if run.get("run") != record["run"]
                            or run["base_steps"] != record["base_steps"]), timed]  # fmt: skip
        pareto_file.write(file, result["runs"], [pareto_file.in_order(row) for row in result["rows"]])
        print(f"{name} {pareto_table.times(row)}, before {before}", flush=True)
