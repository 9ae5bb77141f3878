"""What a calibration found, in words and numbers."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibration.algorithm import Trial
from calibration.budget import predicted_drift
from calibration.calibrate import Result, package_versions
from calibration.drift import Drift
from ditfastattn.cost import PlanTime
from plans import Method, Plan
from plans.files import write_text
from plans.macs import plan_macs, shares
from plans.render import curve, legend_order

LITTLE = 90.0  # percent of attention MACs left, above which a plan is called little compressed


def describe(result: Result, seen: Drift, unseen: Drift, time: PlanTime | None = None) -> str:
    """The closing table of one calibration. ``time``: of a run of the plan, if it is known."""
    macs = plan_macs(result.plan)
    record = result.plan.calibration
    what = "condition" if record is None or record.conditions else "prompts" if record.prompts else "labels"
    other = ["  (other classes drift more)"] if record and record.labels else []
    lines = ["", "method        share of cells"]
    share_of = shares(result.plan)
    for method in reversed(legend_order(result.plan)):
        share = share_of[method]
        lines.append(f"  {method:<11} {share:5.1f} %  {'█' * round(share / 2.5)}")
    taken_over = f"; {result.resumed_steps} steps were taken over" if result.resumed_steps else ""
    saved = 100 * (1 - result.block_runs / result.plain_block_runs) if result.plain_block_runs else 0.0
    lines += [
        "",
        f"attention MACs      {macs.percent:.1f} % of full (projections counted; storing residuals adds "
        f"{macs.store_percent:.1f} %)",
        *([f"predicted run time  {time}"] if time else []),
        f"block runs          {result.block_runs} made"
        + (
            f", {result.plain_block_runs - result.block_runs} saved of {result.plain_block_runs} ({saved:.0f} %)"
            if result.plain_block_runs
            else ""
        )
        + f", and {result.residual_passes} attention-only passes{taken_over}",
        "drift from the uncompressed sampler       latents rel. L2    PSNR       SSIM",
        f"  on the calibration noise                {_drift(seen)}",
        f"  {f'on other noise, the same {what}':<38}  {_drift(unseen)}",
        *other,
        *_weighted(result),
        *_slower(time),
    ]
    return "\n".join(lines + _why_little(result, macs.percent))


def _slower(time: PlanTime | None) -> list[str]:
    """What to do about a plan that saves MACs and no time."""
    if time is None or time.total <= time.full:
        return []
    return [
        "",
        f"This plan is slower here than uncompressed, by measured times {time.total:.1f} ms against {time.full:.1f}:",
        "ask for a plan by time with --speedup, or see with python -m calibration advise what pays on this device.",
    ]


def _weighted(result: Result) -> list[str]:
    """What the loss drift knows: sensitivities, the drift it predicts, and what became of a budget."""
    record = result.plan.calibration
    if record is None or not record.sensitivity:
        return []
    least, most = min(record.sensitivity[1:], default=0.0), max(record.sensitivity)
    lines = [
        "",
        f"final drift per error of a step   {curve(record.sensitivity)}  {most:.3g} at most, {least:.3g} at least "
        f"({result.measuring_runs} block runs to measure)",
        f"predicted final drift             {predicted_drift(result.decisions):.4f}",
    ]
    if record.budget is not None:
        found = record.budget
        batches = " ".join(f"{value:.4f}" for value in found.achieved)
        lines += [
            f"asked for                         {found.asked:g}",
            f"achieved on other noise           {batches}: under {found.upper:.4f} in 39 of 40 batches like these",
        ]
    return lines


def explain_rule(plan: Plan, loss: str, threshold: float, layers: int, step: int) -> list[str]:
    """By what rule the cells of a step were chosen, in words."""
    record = plan.calibration
    rule = f"loss {loss}, threshold {threshold:g}, limit threshold * (layer + 1) / {layers}"
    if record is None or not record.sensitivity:
        return [rule]
    if record.search == "fast":
        rule = (
            "no candidate was tried: the cells are those of least MACs among plans that are predicted to drift by at "
            f"most {threshold:.4g}, by errors measured cell by cell in one uncompressed run"
        )
    elif record.budget is not None:
        rule = (
            f"loss {loss} at the price {threshold:.4g}: under its limit a method is better than FULL, and the one "
            "taken is that of least (its MACs / MACs of a FULL step) + (loss / price)^2"
        )
    lines = [
        rule,
        f"a loss is the error of the guided prediction (relative L2) times {record.sensitivity[step]:.4g}, which is "
        "how far the final latents move for it",
        f"that of all steps: {curve(record.sensitivity)} (0 to {max(record.sensitivity):.3g}, as the fourth root)",
    ]
    if record.budget is not None:
        found = record.budget
        lines.append(
            f"the price was found for a drift of {found.asked:g}: predicted {found.predicted:.4f}, on other noise "
            f"{max(found.achieved):.4f} at most"
        )
    return lines


def _drift(values: Drift) -> str:
    return f"{values.latent_rel_l2:13.4f}  {_decibels(values.psnr):>8}  {values.ssim:9.4f}"


def _decibels(psnr: float) -> str:
    return f"{psnr:.1f} dB" if math.isfinite(psnr) else "equal"


def _why_little(result: Result, percent: float) -> list[str]:
    """If little was compressed: how much, and the rejected trials that came closest."""
    if percent < LITTLE:
        return []
    rejected = [
        (step, trial)
        for step, decision in enumerate(result.decisions)
        for trial in decision.trials
        if not trial.accepted and math.isfinite(trial.loss)
    ]
    lines = ["", f"Little could be compressed: {percent:.1f} % of the attention MACs are left."]
    record = result.plan.calibration
    if record is not None and record.search == "fast":
        return [*lines, "More would be predicted to drift farther than was asked for; try a larger --drift."]
    if not rejected:
        return [*lines, "No candidate was rejected: there was nothing to try (one step, or no methods)."]
    lines.append(f"The {calibration_loss(result)} of these candidates came closest to its limit:")
    rejected.sort(key=lambda item: item[1].loss / item[1].limit)
    lines += [f"  step {step:3d} layer {t.layer:2d}  {explain_trial(t)}" for step, t in rejected[:5]]
    typical = sorted(t.loss / t.limit for _, t in rejected)[len(rejected) // 2]
    option = "--drift" if record is not None and record.budget is not None else "--threshold"
    lines.append(f"Half of the rejected candidates were at least {typical:.1f} times over; try a larger {option}.")
    return lines


def calibration_loss(result: Result) -> str:
    return result.plan.calibration.loss if result.plan.calibration else "loss"


def explain_trial(trial: Trial, chosen: Method | None = None) -> str:
    """One candidate in words. ``chosen``: what the layer does, if that need not be the first that was accepted."""
    if trial.accepted and chosen not in (None, trial.method):
        return (
            f"{trial.method:<10} loss {trial.loss:.5f} < limit {trial.limit:.5f}: better than FULL, not than {chosen}"
        )
    if trial.accepted:
        return f"{trial.method:<10} loss {trial.loss:.5f} < limit {trial.limit:.5f}: accepted"
    if not math.isfinite(trial.loss):
        return f"{trial.method:<10} loss {trial.loss}: rejected, the output was not finite"
    ratio = trial.loss / trial.limit
    return f"{trial.method:<10} loss {trial.loss:.5f} >= limit {trial.limit:.5f}: rejected ({ratio:.2f} x the limit)"


def summary_row(threshold: str, result: Result, seen: Drift, unseen: Drift) -> dict[str, Any]:
    """A row of the summary file. Drift is on the calibration noise; ``unseen_*`` on other noise. psnr null: equal."""

    def finite(value: float) -> float | None:
        return round(value, 4) if math.isfinite(value) else None

    record = result.plan.calibration
    budget = record.budget if record else None
    return {
        "threshold": threshold,
        **({"budget": budget.model_dump(mode="json")} if budget else {}),
        "attention_macs": round(plan_macs(result.plan).percent, 3),
        "latent_rel_l2": round(seen.latent_rel_l2, 6),
        "psnr": finite(seen.psnr),
        "ssim": round(seen.ssim, 6),
        "unseen_latent_rel_l2": round(unseen.latent_rel_l2, 6),
        "unseen_psnr": finite(unseen.psnr),
        "unseen_ssim": round(unseen.ssim, 6),
        "block_runs": result.block_runs,
        "plain_block_runs": result.plain_block_runs,
        "shares": {str(method): round(share, 2) for method, share in shares(result.plan).items()},
    }


def write_summary(path: Path, command: str, device: str, dtype: str, rows: Sequence[dict[str, Any]]) -> None:
    """All thresholds of one command as JSON, with what made them; whole or not at all."""
    content = {
        "command": command,
        "device": device,
        "dtype": dtype,
        "versions": package_versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "rows": list(rows),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
