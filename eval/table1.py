"""``python -m eval table1``: the paper's Table 1 from weights and data to the page, as one command that resumes.

Calibrates a plan for each threshold, samples the uncompressed model and every plan, measures all of them against real
images and writes the report. Every stage is a command of its own, shown before it runs; one that is done with the same
settings is skipped, and one that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from calibration.settings import parse_threshold
from ditfastattn.errors import DitFastAttnError
from ditfastattn.ranks import ALONE
from eval.arguments.table1 import parser
from eval.networks import load_network
from eval.runs import Run
from eval.stages import Ledger, Stage

FULL = "full"


def stages(o: argparse.Namespace) -> list[Callable[[], Stage]]:
    """Every command of a reproduction, in order."""
    names = [FULL, *o.thresholds]
    plan = {name: o.out / "plans" / f"{name}.json" for name in o.thresholds}
    folder = {name: o.out / "runs" / name for name in names}
    reference, report = o.out / "reference.npz", o.out / "report"
    model = ("--model", o.model, *(("--vae", o.vae) if o.vae else ()))
    machine = ("--dtype", o.dtype, "--device", o.device)
    run = ("--sampler", o.sampler, "--steps", str(o.steps), "--guidance", f"{o.guidance:g}", "--seed", str(o.seed))
    network = ("--network", o.network, *(("--weights", str(o.weights)) if o.weights else ()), "--device", o.device)

    def calibrate(name: str) -> Stage:
        arguments = (*model, "--threshold", name, *run, "--n-calib", str(o.n_calib), *machine,
                     "--output", str(plan[name]), "--resume")  # fmt: skip
        return Stage(f"calibrate {name}", "calibration.cli", "calibration", arguments, (), plan[name].exists,
                     o.processes)  # fmt: skip

    def sample(name: str) -> Stage:
        # torchrun of some Pythons takes --n for an option of its own.
        arguments = (*model, "--images", str(o.n), *run, *machine, "--format", o.format,
                     *(("--plan", str(plan[name])) if name != FULL else ()),
                     *(("--batch", str(o.batch)) if o.batch else ()), *(("--compile",) if o.compile else ()),
                     "--out", str(folder[name]))  # fmt: skip
        inputs = (plan[name],) if name != FULL else ()
        return Stage(f"sample {name}", "eval.sample", "eval sample", arguments, inputs,
                     lambda: _is_whole(folder[name]), o.processes)  # fmt: skip

    def stats() -> Stage:
        side = json.loads((folder[FULL] / "run.json").read_text())["size"][0]
        arguments = (str(o.imagenet), "--size", str(side), "--out", str(reference), *network)
        return Stage("statistics of the real images", "eval.stats", "eval stats", arguments, (), reference.exists)

    def write() -> Stage:
        arguments = (*(str(folder[name]) for name in names), "--reference", str(reference), *network,
                     "--lpips", o.lpips, "--out", str(report))  # fmt: skip
        inputs = (reference, *(folder[name] / "run.json" for name in names))
        return Stage("measure and report", "eval.report", "eval report", arguments, inputs,
                     (report / "report.html").exists)  # fmt: skip

    return [
        *(lambda name=name: calibrate(name) for name in o.thresholds),
        *(lambda name=name: sample(name) for name in names),
        stats,
        write,
    ]


def _is_whole(folder: Path) -> bool:
    try:
        Run.open(folder)
    except DitFastAttnError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Run every stage that is not done."""
    options = parser().parse_args(argv)
    options.device = ALONE.device(options.device)
    options.dtype = options.dtype or ("float16" if options.device.startswith("cuda") else "float32")
    for name, value in (("--n", options.n), ("--n-calib", options.n_calib), ("--processes", options.processes)):
        if value < 1:
            raise DitFastAttnError(f"{name} must be at least 1, got {value}")
    if options.n < 2:
        raise DitFastAttnError("--n must be at least 2: a Frechet distance needs a covariance")
    values = [parse_threshold(name) for name in options.thresholds]
    if len(set(values)) < len(values):
        raise DitFastAttnError(f"a threshold stands twice: {' '.join(options.thresholds)}")
    if not options.imagenet.exists():
        raise DitFastAttnError(f"{options.imagenet} does not exist; name the folder or .npz of the real images")
    load_network(options.network, "cpu", options.weights)  # missing weights are found before hours of sampling
    keys = ("model", "n", "sampler", "steps", "guidance", "n_calib", "seed", "dtype", "network", "format")
    settings = {key: getattr(options, key) for key in keys} | {"imagenet": str(options.imagenet)}
    ledger = Ledger(options.out / "table1.json", settings)
    ran = ledger.run(stages(options))
    print(f"{len(ran) or 'no'} stage{'s' * (len(ran) != 1)} ran; the page: {options.out / 'report' / 'report.html'}")
