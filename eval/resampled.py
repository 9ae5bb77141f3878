"""What a plan loses that is resampled for other steps or guidance, beside plans that were calibrated there.

Each target, a number of steps or a guidance scale, has an uncompressed run of its own. From it the resampled plans and
plans calibrated at the target, whose thresholds are sought until their attention MACs are near, are as far as the rows
say: relative L2 of the final latents and PSNR, on classes and noise that no calibration has seen.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from calibration.calibrate import calibrate
from calibration.loss import LOSS_NAMES
from calibration.progress import bars
from calibration.settings import Settings
from ditfastattn.errors import DitFastAttnError
from ditfastattn.fewer import sampler_from
from ditfastattn.models import adapt
from ditfastattn.ranks import ALONE
from ditfastattn.resample import resample
from ditfastattn.samplers import inference_steps
from eval.arguments.resampled import parser
from eval.drift import UNSEEN, Subject
from eval.drift_runs import Sampled, psnr
from eval.least import check_least
from eval.record import command_line, device_name, record
from plans import Plan, load
from plans.compare import setting_differences
from plans.files import write_text
from plans.macs import plan_macs

Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Another run of the plans' model: inference steps and guidance scale."""

    steps: int
    scale: float


def next_threshold(rows: Sequence[Row], macs: float, first: float) -> float:
    """Where a calibration may have so many percent of MACs, by those that there are: larger thresholds have fewer.

    Between the two nearest the threshold is interpolated by its logarithm; beyond them it is half or twice the last.
    """
    points = sorted((row["threshold"], row["attention_macs"]) for row in rows)
    if not points:
        return first
    for (low, more), (high, fewer) in pairwise(points):
        if more >= macs >= fewer:
            share = (more - macs) / (more - fewer) if more > fewer else 0.5
            share = min(max(share, 0.1), 0.9)  # an end is a threshold that has been tried
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return points[-1][0] * 2 if macs < points[-1][1] else points[0][0] / 2


def nearest(rows: Sequence[Row], macs: float) -> Row:
    """The calibrated row whose MACs are nearest."""
    return min(rows, key=lambda row: abs(row["attention_macs"] - macs))


class Comparison:
    """The rows of one model and its plans.

    Raises:
        DitFastAttnError: plans of different runs, of another model, or of more than attention.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.plans = {path.name.removesuffix(".json"): load(path) for path in args.plans}
        self.first = next(iter(self.plans.values()))
        for name, plan in self.plans.items():
            if differences := setting_differences(self.first, plan, "the first plan", name):
                raise DitFastAttnError("the plans are of different runs, compare them apart: " + "; ".join(differences))
            if plan.sampler.own_timesteps:
                raise DitFastAttnError(
                    f"{name} has timesteps of its own; calibration plans those of the sampler, so give plans of these"
                )
            if plan.sites.keys() != {"attn"}:
                raise DitFastAttnError(
                    f"{name} has the sites {', '.join(plan.sites)}; calibration plans attention between tokens alone, "
                    "so give plans of that"
                )
        self.subject = Subject(args)
        self.pipe = self.subject.pipe
        self.pipe.scheduler = sampler_from(self.first.sampler)
        if differences := self.first.differences(model=adapt(self.pipe.transformer).spec()):
            raise DitFastAttnError(f"the plans are for another model than {args.model}: " + "; ".join(differences))
        seen = {label for plan in self.plans.values() if plan.calibration for label in plan.calibration.labels}
        others = [label for label in self.subject.others if label not in seen] or self.subject.others
        self.images = [others[index % len(others)] for index in range(args.n)]
        self.rows: list[Row] = []

    @property
    def home(self) -> Target:
        """The run that the plans were made for."""
        return Target(inference_steps(self.pipe.scheduler, self.first.steps), self.first.guidance.scale)

    def targets(self) -> list[Target]:
        """The plans' own run, where nothing is resampled, and the others."""
        home = self.home
        found = [home, *(Target(steps, home.scale) for steps in self.args.steps)]
        return list(dict.fromkeys([*found, *(Target(home.steps, scale) for scale in self.args.scales)]))

    def measure(self, target: Target, write: Callable[[], None]) -> None:
        """All rows of one target, written as they are measured."""
        moved = {name: self._moved(plan, target) for name, plan in self.plans.items()}
        full = self._sampled(None, target, next(iter(moved.values())).steps)
        before = len(self.rows)
        for name, plan in moved.items():
            of = "calibrated" if target == self.home else "resampled"
            self._add(self._row(name, plan, target, full) | {"of": of}, write)
        if target == self.home:
            return
        resampled = self.rows[before:]
        calibrated: list[Row] = []
        for name, row in zip(moved, resampled, strict=True):
            for _ in range(self.args.tries):
                macs = row["attention_macs"]
                if calibrated and abs(nearest(calibrated, macs)["attention_macs"] - macs) <= self.args.near:
                    break
                source = self.plans[name]
                first = source.calibration.threshold if source.calibration else 0.05
                threshold = next_threshold(calibrated, macs, first)
                plan = self._calibrated(source, target, threshold)
                found = self._row(f"threshold {threshold:.4g}", plan, target, full)
                calibrated.append(found | {"of": "calibrated", "threshold": threshold})
                self._add(calibrated[-1], write)

    def pairs(self) -> list[Row]:
        """Of every resampled row, beside it the calibrated one of its target whose MACs are nearest."""
        found = []
        for row in self.rows:
            there = [other for other in self.rows if "threshold" in other and _target(other) == _target(row)]
            if row["of"] == "resampled" and there:
                found.append({"resampled": row, "calibrated": nearest(there, row["attention_macs"])})
        return found

    def _moved(self, plan: Plan, target: Target) -> Plan:
        if target == self.home:
            return plan
        return resample(
            plan,
            steps=None if target.steps == self.home.steps else target.steps,
            guidance=None if target.scale == self.home.scale else target.scale,
        )

    def _calibrated(self, source: Plan, target: Target, threshold: float) -> Plan:
        """As the source was calibrated, where it says, but for the target."""
        how: dict[str, Any] = {"labels": self.subject.labels, "seed": self.args.seed}
        if (record := source.calibration) is not None:
            how |= {"methods": record.methods, "seed": record.seed}
            how |= {"labels": record.labels} if record.labels else {}
            how |= {"loss": record.loss} if record.loss in LOSS_NAMES else {}
        settings = Settings(
            threshold=threshold,
            steps=target.steps,
            guidance_scale=target.scale,
            window=source.window,
            token_order=source.token_order,
            compile=self.args.compile,
            **how,
        )
        with bars(f"{settings.loss} {threshold:.4g}") as watch:
            return calibrate(self.pipe, settings, watch=watch).plan

    def _sampled(self, plan: Plan | None, target: Target, calls: int) -> Sampled:
        return self.subject.latents(plan, self.images, self.args.seed + UNSEEN, target.scale, calls)

    def _row(self, name: str, plan: Plan, target: Target, full: Sampled) -> Row:
        ours = self._sampled(plan, target, plan.steps)
        return {
            "plan": name,
            "steps": target.steps,
            "guidance": target.scale,
            "attention_macs": round(plan_macs(plan).percent, 2),
            "latent_rel_l2": round(full.distance(ours), 5),
            "psnr": psnr(full, ours),
        }

    def _add(self, row: Row, write: Callable[[], None]) -> None:
        self.rows.append(row)
        write()
        print(
            f"{row['steps']:4} steps, guidance {row['guidance']:<4g} {row['of']:<10} {row['plan']:<24} "
            f"{row['attention_macs']:6.1f} % of MACs  latents {row['latent_rel_l2']:.4f}  {row['psnr']} dB",
            flush=True,
        )


def _target(row: Row) -> Target:
    return Target(row["steps"], row["guidance"])


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print and write resampled.json; what is measured is written at once."""
    args = parser().parse_args(argv)
    args.device = ALONE.device(args.device)
    check_least(args, dict.fromkeys(("tries", "labels", "n", "batch"), 1))
    comparison = Comparison(args)
    name = Path(args.model).name
    file = args.out / ("resampled.json" if name == "demo" else f"resampled-{name}.json")
    result: dict[str, Any] = {
        **record(command_line("resampled", argv, ("--out", "--device")), device_name(args.device), args.dtype),
        "model": name,
        "from": {"steps": comparison.home.steps, "guidance": comparison.home.scale},
        "images": args.n,
    }

    def write() -> None:
        args.out.mkdir(parents=True, exist_ok=True)
        found = {"rows": comparison.rows, "nearest": comparison.pairs()}
        write_text(file, json.dumps(result | found, indent=1, allow_nan=False) + "\n")

    for target in comparison.targets():
        comparison.measure(target, write)
    for pair in comparison.pairs():
        ours, there = pair["resampled"], pair["calibrated"]
        print(
            f"{ours['steps']:4} steps, guidance {ours['guidance']:g}, {ours['plan']}: {ours['psnr']} dB at "
            f"{ours['attention_macs']:.1f} % of MACs; calibrated there {there['psnr']} dB at "
            f"{there['attention_macs']:.1f} %"
        )
    print(f"written: {file}")
