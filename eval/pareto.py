"""Quality against cost: fewer steps, the schedules of others, the paper's search, and plans priced cell by cell.

Images of the same noise by every way of spending less, compared with the uncompressed images of the base's steps. Cost
counts the MACs of attention and MLPs; a plan of fewer steps is compressed no further than its share asks for.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from calibration.calibrate import calibrate, empty_plan, package_versions
from calibration.labels import choose_labels
from calibration.loss import DRIFT
from calibration.priced import CANDIDATES, Priced, priced
from calibration.sensitivity import Sensitivity
from calibration.settings import Settings
from calibration.subjects import condition_of
from ditfastattn.condition import FromLabels
from ditfastattn.errors import DitFastAttnError
from ditfastattn.models import adapt
from ditfastattn.pipelines import load_pipeline
from eval.drift import RESULTS, UNSEEN
from eval.drift_runs import Sampled, final_latents, psnr
from eval.record import command_line
from plans import Method, Plan, make
from plans.files import write_text
from plans.macs import mlp_macs, plan_macs, total_macs
from plans.method import PAPER

SHARES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2)  # of the base's MACs
STEPS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3)  # of the base's steps, that a plan of ours may take


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m eval pareto", description=__doc__.split("\n\n")[0])
    add = p.add_argument
    add("--model", default="demo", help="a pipeline conditioned on labels (default: demo)")
    add("--base-steps", type=int, nargs="+", default=[50, 20])
    add("--guidance", type=float, default=4.0)
    add("--labels", type=int, default=8, help="images calibrated on (8)")
    add("--n", type=int, default=256, help="other images that are compared (256)")
    add("--batch", type=int, default=64)
    add("--seed", type=int, default=0)
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=RESULTS, help="folder of pareto-MODEL.json (eval/results)")
    return p


Candidate = tuple[str, str, Plan | None, int]  # method, setting, plan (None: uncompressed), steps


class Bench:
    """A model, the images it is judged by, and menus of what ours may choose from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.pipe = load_pipeline(args.model, dtype=getattr(torch, args.dtype), device=args.device)
        if not isinstance(adapt(self.pipe.transformer), FromLabels):
            raise DitFastAttnError(f"{args.model} is conditioned on prompts; this compares plans on other labels")
        self.labels = choose_labels(self.pipe, None, args.labels, args.seed)
        every = choose_labels(self.pipe, None, 10**4, args.seed)
        others = [label for label in dict.fromkeys(every) if label not in self.labels] or list(self.labels)
        self._unseen = [others[index % len(others)] for index in range(args.n)]
        self._priced: dict[tuple[int, str], Priced] = {}
        self._sensitivities: dict[int, tuple[Sensitivity, ...]] = {}

    def settings(self, steps: int, **how: Any) -> Settings:
        args = self.args
        return Settings(labels=self.labels, steps=steps, guidance_scale=args.guidance, seed=args.seed, **how)

    def sampled(self, plan: Plan | None, steps: int) -> Sampled:
        args = self.args
        return final_latents(self.pipe, plan, self._unseen, args.seed + UNSEEN, args.guidance, steps, args.batch)

    def calibrated_on(self, steps: int) -> Sampled:
        """The uncompressed latents of the images that are calibrated on."""
        args = self.args
        return final_latents(self.pipe, None, list(self.labels), args.seed, args.guidance, steps, args.batch)

    def priced(self, steps: int, kind: str) -> Priced:
        """``kind``: "attn" chooses among the paper's methods for attention, "all" also forecasts, and MLPs."""
        if (steps, kind) not in self._priced:
            begun = time.monotonic()
            paper = tuple(method for method in PAPER if method is not Method.FULL)
            candidates = paper if kind == "attn" else CANDIDATES
            settings = self.settings(steps, threshold=1.0, loss=DRIFT)
            found = priced(self.pipe, settings, kind == "all", candidates, self._sensitivities.get(steps, ()))
            self._priced[steps, kind], self._sensitivities[steps] = found, found.sensitivities
            seconds = time.monotonic() - begun
            print(f"errors of {steps} steps, {kind}: {found.table.block_runs} block runs, {seconds:.0f} s", flush=True)
        return self._priced[steps, kind]


def rivals(bench: Bench, base: int) -> Iterator[Candidate]:
    """What is not ours."""
    for share in STEPS[1:]:
        yield "fewer steps", f"{round(share * base)}", None, round(share * base)
    full = full_plan(bench, base)
    for interval in (2, 3, 4):
        yield "FORA", f"interval {interval}", make.fora(full, interval), base
        for order in (1, 2):
            plan = make.taylorseer(full, interval, order)
            yield "TaylorSeer-like", f"interval {interval}, order {order}", plan, base
        yield "skip", f"interval {interval}", make.skip(full, interval), base
    for interval in (2, 3):
        yield "PAB", f"interval {interval}", make.pab(full, interval), base


def paper(bench: Bench, base: int) -> Iterator[Candidate]:
    """DiTFastAttn's own search, by its own loss."""
    for threshold in (0.005, 0.01, 0.025, 0.05):
        found = calibrate(bench.pipe, bench.settings(base, threshold=threshold)).plan
        yield "DiTFastAttn", f"mrae {threshold:g}", found, base


def full_plan(bench: Bench, steps: int) -> Plan:
    """All FULL."""
    settings = bench.settings(steps, threshold=1.0)
    shape = condition_of(bench.pipe, settings).latent_shape
    return empty_plan(adapt(bench.pipe.transformer), bench.pipe.scheduler, settings, shape)


def ours(bench: Bench, base: int) -> Iterator[Candidate]:
    """Plans of at most a share of the base's MACs: over all its steps, and over as many steps as are predicted to end
    nearest to its images."""
    full = total_macs(full_plan(bench, base)).full
    reference = bench.calibrated_on(base)
    counts = sorted({max(2, round(share * base)) for share in STEPS}, reverse=True)
    short = {steps: reference.distance(bench.calibrated_on(steps)) for steps in counts}
    for name, kind in (("together", "all"), ("cells", "all"), ("cells, attention", "attn")):
        for share in SHARES:
            tried: list[tuple[float, int, Plan]] = []
            for steps in counts:
                try:
                    plan, drift = cheap(bench, steps, name, kind, share * full)
                except DitFastAttnError:
                    continue  # not even the cheapest plan of so many steps
                tried.append((math.hypot(short[steps], drift), steps, plan))
            for what, some in ((f"ours, {name}", tried), (f"ours, {name}, all steps", tried[:1])):
                if not some or (what.endswith("all steps") and some[0][1] != base):
                    continue
                predicted, steps, plan = min(some, key=lambda one: one[0])
                yield what, f"{share:g}, {steps} steps, predicted {predicted:.4f}", plan, steps


def cheap(bench: Bench, steps: int, name: str, kind: str, macs: float) -> tuple[Plan, float]:
    """A plan of no more MACs, attention and MLPs, and its predicted drift."""
    found = bench.priced(steps, kind)
    if name == "together":
        return found.rhythms.costing(macs)
    plan = found.menu.costing(macs if kind == "all" else macs - mlp_macs(full_plan(bench, steps)).total)
    return plan, found.menu.predicted(plan)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print and write pareto-MODEL.json; every row is written as it is measured."""
    args = parser().parse_args(argv)
    bench = Bench(args)
    file = args.out / f"pareto-{Path(args.model).name}.json"
    on_gpu = torch.device(args.device).type == "cuda"
    rows: list[dict[str, Any]] = []
    result = {
        "command": command_line("pareto", argv, ("--out", "--device")),
        "model": Path(args.model).name,
        "device": torch.cuda.get_device_name(args.device) if on_gpu else platform.machine() + " CPU",
        "dtype": args.dtype,
        "versions": package_versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "images": args.n,
        "guidance": args.guidance,
        "rows": rows,
    }
    for base in args.base_steps:
        reference = bench.sampled(None, base)
        full = total_macs(full_plan(bench, base)).full
        sources: tuple[Callable[..., Iterator[Candidate]], ...] = (rivals, ours, paper)
        for source in sources:
            for method, setting, plan, steps in source(bench, base):
                found = bench.sampled(plan, steps)
                macs = steps / base if plan is None else total_macs(plan).total / full
                row = {
                    "method": method,
                    "setting": setting,
                    "base_steps": base,
                    "steps": steps,
                    "total_macs": round(100 * macs, 2),
                    "attention_macs": 100.0 if plan is None else round(plan_macs(plan).percent, 2),
                    "psnr": psnr(reference, found),
                    "latent_rel_l2": round(reference.distance(found), 5),
                }
                rows.append(row)
                args.out.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps(result, indent=1, allow_nan=False) + "\n")
                print(f"{base} {method:<22} {setting:<40} {row['total_macs']:6.1f} % {row['psnr']} dB "
                      f"{row['latent_rel_l2']:.4f}", flush=True)  # fmt: skip
    print(f"written: {file}")
