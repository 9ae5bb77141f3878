"""Speed alone, of the ways that `python -m eval pareto` compares, on published geometries with random weights.

Left out is what random weights cannot decide: SmoothCache's calibration errors, what DBCache computes at run time, and
ours, whose plans are searched on trained weights and cannot be carried over from a model of other depth. Plans of the
paper's methods are synthetic, with the attention MACs that its D1 to D6 have (`eval.synthetic`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch

from ditfastattn.errors import DitFastAttnError
from ditfastattn.ranks import ALONE
from eval import geometry, pareto_file, pareto_table, pareto_time
from eval.arguments.pareto_speed import parser
from eval.geometry import GUIDANCE_SCALE, Geometry
from eval.least import check_least
from eval.paper import NAMES, PAPER_SHARES
from eval.pareto_bench import Candidate, share
from eval.pareto_file import SPEED_ALONE
from eval.pareto_rivals import schedules
from eval.pareto_time import Faster, Stopwatch
from eval.record import command_line, device_name, record
from eval.sample_settings import check_steps
from eval.synthetic import synthetic_plan
from plans import Plan
from plans.macs import plan_macs, total_macs


def main(argv: Sequence[str] | None = None) -> None:
    """Print, and write into pareto.json; every row is written as it is measured.

    Raises:
        DitFastAttnError: no GPU, numbers that make no comparison, or, at the end, ways that could not be timed.
    """
    args = parser().parse_args(argv)
    check_least(args, {"base_steps": 2, "batch": 1, "repeats": 1})
    if torch.device(ALONE.device(args.device)).type != "cuda":
        raise DitFastAttnError(f"speed is measured on a GPU; --device is {args.device}, give a cuda device")
    measure(args, command_line("pareto-speed", argv, ("--out", "--device")))


@torch.no_grad()
def measure(args: argparse.Namespace, command: str) -> None:
    """All rows of a model."""
    dtype = getattr(torch, args.dtype)
    model = geometry.build(args.model, args.device, dtype)
    for base in args.base_steps:
        check_steps(model.pipe, base)
    print(f"{args.model}: {SPEED_ALONE}; {device_name(args.device)}, batch {args.batch}, {args.dtype}", flush=True)
    condition = geometry.condition(model.pipe, args.batch)
    stopwatch = Stopwatch(model.pipe, dtype, condition, GUIDANCE_SCALE, args.base_steps[0], args.repeats)
    told = {
        "model": args.model,
        "base_steps": 0,
        pareto_file.RUN: pareto_file.run_name(),
        **record(command, device_name(args.device), args.dtype),
        "weights": "random",
        "images": args.batch,
        "guidance": GUIDANCE_SCALE,
        "timed": f"{pareto_time.what(args.repeats)}; batch {args.batch}, {args.dtype}",
    }
    failed = []
    for base in args.base_steps:
        table = pareto_file.Table(args.out / pareto_file.NAME, {**told, "base_steps": base})
        watch = stopwatch.at(base)
        for method, setting, way, steps in ways(model, base):
            if args.only and method not in args.only:
                continue
            try:
                faster = watch.speedup(way, steps)
            except RuntimeError as error:  # out of memory: no reason to lose the rows of other ways
                failed.append(f"{method} {setting} from {base} steps")
                print(f"not timed: {failed[-1]}: {' '.join(str(error).split())[:200]}", flush=True)
                continue
            finally:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()  # graphs of the last plan keep their memory apart
            made = row(args.model, base, (method, setting, way, steps), faster)
            table.add(made)
            times = pareto_table.times(made)
            print(f"{base} {method:<16} {setting:<44} {made['total_macs']:6.1f} % {times}", flush=True)
    if failed:
        raise DitFastAttnError(f"not timed, see above: {', '.join(failed)}")
    print(f"written: {args.out / pareto_file.NAME}")


def row(model: str, base: int, candidate: Candidate, faster: Faster) -> dict[str, Any]:
    """Of pareto.json; there are no images to compare."""
    method, setting, _, steps = candidate
    macs, attention = _percents(candidate, base)
    return {
        "model": model,
        "method": method,
        "setting": f"{setting}; {SPEED_ALONE}",
        "base_steps": base,
        "steps": steps,
        "total_macs": round(macs, 2),
        "attention_macs": round(attention, 2),
        **faster.as_row(),
        **dict.fromkeys(("psnr", "ssim", "latent_rel_l2", "fd")),
    }


def ways(model: Geometry, base: int) -> Iterator[Candidate]:
    """The uncompressed model, and as prepared steps; then of each method in turn what comes nearest to half the MACs,
    the next nearest, and so on: a run cut short has some of all."""
    full = model.full_plan(base)
    yield "full", "uncompressed", None, base
    yield "full", "all FULL, by prepared steps", full, base
    methods: dict[str, list[tuple[float, Candidate]]] = {}
    for candidate in (*schedules(full), *papers(model.name, full)):
        off = abs(_percents(candidate, base)[0] - 50)
        methods.setdefault(candidate[0], []).append((off, candidate))
    nearest = (sorted(found, key=lambda one: one[0]) for found in methods.values())
    for turn in zip_longest(*nearest):
        yield from (one[1] for one in turn if one is not None)


def papers(model: str, full: Plan) -> Iterator[Candidate]:
    """Synthetic plans of the attention MACs that the paper's plans have on this model."""
    for name, percent in zip(NAMES[1:], PAPER_SHARES[model], strict=True):
        yield "DiTFastAttn", f"synthetic, attention MACs of {name}", synthetic_plan(full, percent), full.steps


def _percents(candidate: Candidate, base: int) -> tuple[float, float]:
    """MACs of attention and MLPs, and of attention, of those of the base's uncompressed run."""
    _, _, way, steps = candidate
    assert way is None or isinstance(way, Plan)
    macs, attention = (1.0, 1.0) if way is None else (share(total_macs(way)), share(plan_macs(way)))
    return 100 * macs * steps / base, 100 * attention * steps / base
