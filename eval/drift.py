"""What weighting by sensitivity is worth, and how well a drift budget holds: on other noise, classes and guidance.

Two losses, mrae (the paper's) and drift, at several thresholds each, and plans within budgets ("within"): attention
MACs, PSNR to the uncompressed images of a longer run, and relative L2 of the final latents, on classes and noise that
no search has seen. Then each budget's drift batch by batch: on other seeds, on other classes, at other guidance scales.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from calibration.calibrate import calibrate
from calibration.labels import choose_labels
from calibration.loss import DRIFT
from calibration.progress import bars
from calibration.sensitivity import Sensitivity
from calibration.settings import Settings
from ditfastattn.condition import FromLabels
from ditfastattn.errors import DitFastAttnError
from ditfastattn.models import adapt
from ditfastattn.pipelines import load_pipeline
from ditfastattn.ranks import ALONE
from eval.arguments.drift import parser
from eval.drift_runs import Sampled, final_latents, psnr
from eval.least import check_least
from eval.record import command_line, device_name, record
from plans import Plan
from plans.files import write_text
from plans.macs import plan_macs

WITHIN = "within"  # a plan within a budget; its "threshold" is the budget
UNSEEN = 1000  # seeds from here on are no calibration's


class Subject:
    """A model, what it is calibrated on, and what it is tested on."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.pipe = load_pipeline(args.model, dtype=getattr(torch, args.dtype), device=args.device)
        if not isinstance(adapt(self.pipe.transformer), FromLabels):
            raise DitFastAttnError(f"{args.model} is conditioned on prompts; this compares plans on other labels")
        self.labels = choose_labels(self.pipe, None, args.labels, args.seed)
        every = choose_labels(self.pipe, None, 10**4, args.seed)
        self.others = [label for label in dict.fromkeys(every) if label not in self.labels] or list(self.labels)
        self.measured: tuple[Sensitivity, ...] = ()

    def other_labels(self, count: int, start: int = 0) -> list[int]:
        return [self.others[(start + index) % len(self.others)] for index in range(count)]

    def calibrated(self, **how: Any) -> Plan:
        """A plan; sensitivities are measured once."""
        args = self.args
        settings = Settings(labels=self.labels, steps=args.steps, guidance_scale=args.guidance, seed=args.seed,
                            compile=args.compile, **how)  # fmt: skip
        known = self.measured if settings.loss == DRIFT else ()
        with bars(f"{settings.loss} {settings.threshold or 0:g}") as watch:
            found = calibrate(self.pipe, settings, watch=watch, sensitivities=known)
        self.measured = found.sensitivities or self.measured
        return found.plan

    def latents(self, plan: Plan | None, labels: Sequence[int], seed: int, scale: float, steps: int) -> Sampled:
        return final_latents(self.pipe, plan, labels, seed, scale, steps, self.args.batch)


def compare_losses(subject: Subject, write: Callable[[dict[str, Any]], None]) -> dict[float, Plan]:
    """Rows of both losses and of the budgets, and PSNR at equal MACs by interpolation between them, written as they are
    measured. The budgets' plans."""
    args = subject.args
    labels = subject.other_labels(args.n)

    def sampled(plan: Plan | None, steps: int) -> Sampled:
        return subject.latents(plan, labels, args.seed + UNSEEN, args.guidance, steps)

    full = sampled(None, args.steps)
    long = full if args.reference_steps == args.steps else sampled(None, args.reference_steps)
    found: dict[str, Any] = {"uncompressed_psnr": psnr(long, full), "rows": []}
    within: dict[float, Plan] = {}
    for loss, thresholds in (("mrae", args.mrae), (DRIFT, args.drift), (WITHIN, args.budgets)):
        for threshold in thresholds:
            if loss == WITHIN:
                plan = within[threshold] = subject.calibrated(budget=threshold, loss=DRIFT)
            else:
                plan = subject.calibrated(threshold=threshold, loss=loss)
            ours = sampled(plan, args.steps)
            row = {
                "loss": loss,
                "threshold": threshold,
                "macs": round(plan_macs(plan).percent, 2),
                "psnr": psnr(long, ours),
                "psnr_same_steps": psnr(full, ours),
                "latent_rel_l2": round(full.distance(ours), 5),
            }
            found["rows"].append(row)
            write(found)
            print(
                f"{loss:>6} {threshold:<8g} {row['macs']:6.1f} % of MACs  {row['psnr']} dB to {args.reference_steps} "
                f"steps, {row['psnr_same_steps']} dB to {args.steps}  latents {row['latent_rel_l2']:.4f}",
                flush=True,
            )
    at = {loss: at_macs([r for r in found["rows"] if r["loss"] == loss], args.macs) for loss in ("mrae", DRIFT, WITHIN)}
    found["at_equal_macs"] = {"macs": args.macs, "psnr": at}
    print(f"at {args.macs:g} % of MACs: " + ", ".join(f"{loss} {value} dB" for loss, value in at.items()), flush=True)
    write(found)
    return within


def at_macs(rows: Sequence[dict[str, Any]], macs: float) -> float | None:
    """PSNR at so many percent of MACs, straight between the nearest rows on both sides; None without them."""
    points = sorted((row["macs"], row["psnr"]) for row in rows if row["psnr"] is not None)
    for (low, worse), (high, better) in pairwise(points):
        if low <= macs <= high:
            return round(worse + (better - worse) * (macs - low) / ((high - low) or 1.0), 2)
    return None


def tested(subject: Subject, plan: Plan, asked: float) -> dict[str, Any]:
    """The drift of a plan within ``asked``, batch by batch, on what it was not calibrated on."""
    args = subject.args
    record = plan.calibration
    assert record is not None and record.budget is not None
    count = len(subject.labels)

    def drifts(batches: Sequence[tuple[Sequence[int], int]], scale: float) -> dict[str, Any]:
        """Of batches of (labels, seed)."""
        values = []
        for labels, seed in batches:
            full, ours = (subject.latents(p, labels, seed, scale, args.steps) for p in (None, plan))
            values.append(round(full.distance(ours), 5))
        return {
            "guidance": scale,
            "drift": values,
            "mean": round(fmean(values), 5),
            "within": sum(value <= asked for value in values),
            "of": len(values),
        }

    same = [(subject.labels, args.seed + UNSEEN + 1 + index) for index in range(args.seeds)]
    tests = {"other seeds": drifts(same, args.guidance)}
    if args.classes:
        seeds = range(args.seed + UNSEEN + 1, args.seed + UNSEEN + 1 + args.classes)
        other = [(subject.other_labels(count, index * count), seed) for index, seed in enumerate(seeds)]
        tests["other classes and seeds"] = drifts(other, args.guidance)
    for scale in args.scales:
        tests[f"other seeds, guidance {scale:g}"] = drifts(same, scale)
    row = {
        "asked": asked,
        "price": record.threshold,
        "macs": round(plan_macs(plan).percent, 2),
        "predicted": round(record.budget.predicted, 5),
        "verified": [round(value, 5) for value in record.budget.achieved],
        "upper": round(record.budget.upper, 5),
        "tests": tests,
    }
    print(f"within {asked:g}: {row['macs']:.1f} % of MACs, predicted {row['predicted']:.4f}", flush=True)
    for name, test in tests.items():
        print(f"  {name}: {test['mean']:.4f} on average, {max(test['drift']):.4f} at most, within it {test['within']} "
              f"of {test['of']}", flush=True)  # fmt: skip
    return row


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print and write drift.json; what is measured is written at once."""
    args = parser().parse_args(argv)
    args.device = ALONE.device(args.device)
    check_least(args, dict.fromkeys(("steps", "reference_steps", "labels", "n", "batch", "seeds"), 1))
    subject = Subject(args)
    name = Path(args.model).name
    file = args.out / ("drift.json" if name == "demo" else f"drift-{name}.json")
    result: dict[str, Any] = {
        **record(command_line("drift", argv, ("--out", "--device")), device_name(args.device), args.dtype),
        "model": name,
        "steps": args.steps,
        "reference_steps": args.reference_steps,
        "guidance": args.guidance,
        "labels": list(subject.labels),
        "images": args.n,
    }

    def write(more: dict[str, Any]) -> None:
        result.update(more)
        weights = [round(s.value, 4) for s in subject.measured]
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**result, "sensitivity": weights}, indent=1, allow_nan=False) + "\n")

    budgets: list[dict[str, Any]] = []
    for asked, plan in compare_losses(subject, write).items():
        budgets.append(tested(subject, plan, asked))
        write({"budgets": budgets})
    print(f"written: {file}")
