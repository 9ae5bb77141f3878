"""``python -m eval cost --check``: what tables say of whole runs, beside what those runs take."""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ditfastattn import apply
from ditfastattn.cost import CAPTURED, EAGER, CostTable, plan_time
from ditfastattn.cost.steps import Sampling, plan_of, usual_scheduler
from ditfastattn.execute import Context
from ditfastattn.models.base import PreparedModel
from eval.record import record
from eval.synthetic import synthetic_plan
from plans import Plan
from plans.files import write_text
from plans.make import fora, skip, taylorseer

SHARE = 50.0  # attention MACs of the paper's methods, percent


@dataclass(frozen=True)
class Checked:
    """One plan: milliseconds of a run as predicted, and as measured (median and least)."""

    plan: str
    steps: int
    predicted_ms: float
    measured_ms: float
    least_ms: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_ms / self.measured_ms


def plans_to_check(full: Plan, adapter: PreparedModel) -> dict[str, Plan]:
    """Plans by rule and a synthetic one of the paper's methods, of as many steps as ``full``."""
    found = {"all FULL": full}
    if adapter.mlp is not None:
        found["FORA, every 2nd step"] = fora(full, 2, shape=adapter.mlp)
        found["FORA, every 3rd step"] = fora(full, 3, shape=adapter.mlp)
        found["TaylorSeer, every 2nd step, order 1"] = taylorseer(full, 2, 1, shape=adapter.mlp)
        found["TaylorSeer, every 3rd step, order 2"] = taylorseer(full, 3, 2, shape=adapter.mlp)
    found[f"the paper's methods, {SHARE:g} % of attention MACs"] = synthetic_plan(full, SHARE)
    found["model called every 2nd step, order 1"] = skip(full, 2, 1)
    return found


@torch.no_grad()
def check(
    adapter: PreparedModel, table: CostTable, context: Context, kernel: str, steps: int, repeats: int
) -> Iterator[Checked]:
    """Runs of each plan, and of half as many steps all FULL, by the runtime of the table."""
    call = adapter.example(table.key.batch, table.key.tokens)
    scheduler = usual_scheduler()
    sampling = Sampling(adapter, adapter.read_call((), call), call, context.layout, scheduler)
    plans = plans_to_check(plan_of(adapter, context, scheduler, steps), adapter)
    plans["all FULL, half as many steps"] = plan_of(adapter, context, scheduler, steps // 2)
    prepared = {} if table.key.runtime == EAGER else {"compile": True, "graphs": table.key.runtime == CAPTURED}
    for name, plan in plans.items():
        with apply(adapter.model, plan, kernel=kernel, scheduler=scheduler, **prepared):
            times = [1000 * sampling.run(plan.steps) for _ in range(repeats + 1)][1:]  # the first prepares
        predicted = plan_time(plan, table).total
        yield Checked(name, plan.steps, round(predicted, 3), round(statistics.median(times), 3), round(min(times), 3))


def main(adapter: PreparedModel, table: CostTable, context: Context, options: argparse.Namespace, command: str) -> None:
    """Prints each plan as it is measured, and rewrites the file of ``--out`` after each."""
    rows: list[Checked] = []
    print(f"{'':<48}{'predicted':>12}{'measured':>12}{'least':>12}{'ratio':>8}   ms, {options.steps} steps")
    for row in check(adapter, table, context, options.kernel, options.steps, options.repeats):
        rows.append(row)
        tqdm.write(
            f"{row.plan:<48}{row.predicted_ms:>12.2f}{row.measured_ms:>12.2f}{row.least_ms:>12.2f}{row.ratio:>8.3f}"
        )
        if options.out is not None:
            write(options.out, _result(table, rows, options, command))


def _result(table: CostTable, rows: Sequence[Checked], options: argparse.Namespace, command: str) -> dict[str, Any]:
    return {
        "model": Path(options.model).name,
        "batch": table.key.batch // 2,
        "what": f"whole runs without VAE, medians of {options.repeats}; a batch of B images is 2 B rows",
        **record(command, table.key.device, table.key.dtype),
        "steps": options.steps,
        "table": asdict(table),
        "pair_errors": {name: round(error, 4) for name, error in table.pair_errors().items()},
        "never_slower": {site: list(table.never_slower(site)) for site in table.sites},
        "rows": [asdict(row) | {"ratio": round(row.ratio, 4)} for row in rows],
    }


def write(file: Path, result: dict[str, Any]) -> None:
    """Puts a result into a file of them, in place of one of the same model, batch and runtime."""

    def what(entry: dict[str, Any]) -> tuple[Any, ...]:
        return entry["model"], entry["batch"], entry["table"]["key"]["runtime"]

    results = json.loads(file.read_text()) if file.exists() else []
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = [old for old in results if what(old) != what(result)]
    write_text(file, json.dumps([*kept, result], indent=1) + "\n")
