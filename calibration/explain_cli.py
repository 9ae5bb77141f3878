"""``python -m calibration explain``: why a cell of a plan is what it is."""

import argparse
from pathlib import Path

from calibration.algorithm import Decision
from calibration.errors import CalibrationError
from calibration.journal import read_trace, trace_path
from calibration.report import explain_rule, explain_trial
from calibration.search import filled_in
from plans import Plan, SiteName, load


def explain(options: argparse.Namespace) -> int:
    """Prints the candidates of one cell.

    Raises:
        CalibrationError: no such cell, or a trace of another plan.
    """
    path = Path(options.plan)
    plan = load(path)
    header, decisions = read_trace(trace_path(path))
    order = header.get("sites", ["attn"] * plan.layers)
    if not _is_trace_of(plan, order, decisions):
        raise CalibrationError(f"{trace_path(path)} is not the trace of {path}: their methods differ")
    layers = len(order)
    if not 0 <= options.step < plan.steps or not 0 <= options.layer < layers:
        raise CalibrationError(f"the plan has steps 0..{plan.steps - 1} and layers 0..{layers - 1}")
    decision = decisions[options.step]
    method, site = decision.methods[options.layer], order[options.layer]
    where = f" ({site} {order[: options.layer].count(site)})" if len(plan.sites) > 1 else ""
    time = f"{plan.sampler.timesteps[options.step]:g}"
    print(f"step {options.step} (timestep {time}), layer {options.layer}{where}: {method}")
    if options.step == 0:
        print("  step 0 is FULL in every layer, by rule: nothing is stored before it")
        return 0
    threshold = plan.calibration.threshold if plan.calibration else header["threshold"]
    for line in explain_rule(plan, header["loss"], threshold, layers, options.step):
        print(f"  {line}")
    for trial in decision.trials:
        if trial.layer == options.layer:
            print(f"  {explain_trial(trial, method)}")
    if decision.losses[options.layer] is None:
        print("  FULL       no candidate stayed under the limit")
    return 0


def _is_trace_of(plan: Plan, order: list[SiteName], decisions: list[Decision]) -> bool:
    try:
        return filled_in(plan, order, decisions).sites == plan.sites
    except (IndexError, ValueError):
        return False
