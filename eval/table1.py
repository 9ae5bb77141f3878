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

import torch

from calibration.settings import THRESHOLDS, parse_threshold
from ditfastattn.errors import DitFastAttnError
from ditfastattn.samplers import SAMPLERS
from eval.networks import INCEPTION, LITE0, load_network
from eval.paper import TABLE_1_DIT
from eval.runs import Run
from eval.stages import Ledger, Stage

FULL = "full"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m eval table1",
        description=__doc__.split("\n\n")[1],
        epilog="examples:\n"
        "  python -m eval table1 --model facebook/DiT-XL-2-512 --imagenet ILSVRC2012/train --processes 8 --compile\n"
        "  python -m eval table1 --model facebook/DiT-XL-2-512 --imagenet VIRTUAL_imagenet512.npz\n"
        "  python -m eval table1 ... --sampler iddpm --steps 250 --guidance 1.5 --out table5    the paper's Table 5\n"
        "  python -m eval table1 --model demo --imagenet emoji --n 64 --steps 4 --network efficientnet-lite0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    on_gpu = torch.cuda.is_available()
    add = p.add_argument
    add(
        "--model",
        default="facebook/DiT-XL-2-512",
        help='hub id, folder, .pt, "demo" or "demo-long" (default: %(default)s)',
    )
    add("--imagenet", type=Path, required=True, help="real images: a folder (ADM's centre crop), an ADM .npz, or the "
        "file of python -m eval stats")  # fmt: skip
    add("--n", type=int, default=50000, help="images of each run (default: %(default)s)")
    add("--thresholds", nargs="+", default=list(THRESHOLDS), metavar="T", help="default: D1 to D6")
    add("--sampler", default=TABLE_1_DIT.sampler, choices=list(SAMPLERS), help="default: %(default)s")
    add("--steps", type=int, default=TABLE_1_DIT.steps, help="default: %(default)s")
    add("--guidance", type=float, default=TABLE_1_DIT.guidance, help="default: %(default)s")
    add("--n-calib", type=int, default=8, help="labels to calibrate on (default: %(default)s, as the authors' script)")
    add("--network", default=INCEPTION, help=f"{INCEPTION} (the default), {LITE0}, or module:callable")
    add("--weights", type=Path, help="Inception's weights")
    add("--lpips", default="auto", metavar="auto|none|FILE", help="as in python -m eval similarity")
    add("--vae", help="of a .pt checkpoint")
    add("--seed", type=int, default=0)
    add("--dtype", default="float16" if on_gpu else "float32", choices=["float32", "float16", "bfloat16"])
    add("--batch", type=int, help="images drawn together (default: that of python -m eval sample)")
    add("--compile", action="store_true", help="compile the model for sampling")
    add("--format", default="png", choices=["png", "npz"], help="of the samples (default: %(default)s)")
    add("--device", default="cuda" if on_gpu else "cpu")
    add("--processes", type=int, default=1, help="GPUs of this host to calibrate and sample on (default: 1)")
    add("--out", type=Path, default=Path("table1"), help="folder (default: %(default)s)")
    return p


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
