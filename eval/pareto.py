"""Quality against cost: fewer steps, the schedules of others, the paper's search, and plans priced cell by cell.

Images of the same noise by every way of spending less, compared with the uncompressed images of the base's steps. Cost
counts the MACs of attention and MLPs; a plan of fewer steps is compressed no further than its share asks for.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from calibration.calibrate import package_versions
from eval.drift import RESULTS
from eval.drift_runs import psnr
from eval.pareto_bench import Bench, Candidate, full_plan
from eval.pareto_ours import ours
from eval.pareto_paper import paper
from eval.pareto_rivals import rivals
from eval.record import command_line
from plans.files import write_text
from plans.macs import plan_macs, total_macs


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
