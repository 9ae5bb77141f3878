"""``python -m eval COMMAND``: a module with a ``main(argv)``, imported once its options are known to be right."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ditfastattn.console import Parser, run

COMMANDS = {
    "sample": "exactly n images with a plan or without, on one process or many, resumed after a kill",
    "stats": "reference statistics of real images, for fid and sfid",
    "fid": "FID of a folder or .npz of samples (with another network: a Frechet distance, and called so)",
    "sfid": "the same in spatial features",
    "is": "Inception Score",
    "kid": "kernel distance (KID)",
    "precision-recall": "precision and recall by nearest neighbours",
    "similarity": "PSNR, SSIM, LPIPS and latent distance of two runs from the same noise, image by image",
    "clip": "CLIP score of a text-to-image run and the captions it was made from",
    "report": "one table and one page of an uncompressed run and its compressed ones, with the paper's numbers",
    "table1": "the paper's Table 1: calibrate, sample, measure and report as one resumable command",
    "cost": "what every cell of a plan costs: MACs, bytes, and microseconds measured on the model itself; --check",
    "agreement": "PSNR between the demo's images by every kernel that fits and by the reference kernel",
    "calibration-time": "time a calibration's work, with the trials of a synthetic plan",
    "pareto": "quality against MACs: fewer steps, others' schedules, the paper's search, plans priced cell by cell",
    "pareto-speed": "speed alone, of the same ways, on DiT-XL/2 and PixArt-Sigma geometry with random weights (GPU)",
    "drift": "what weighting by sensitivity is worth, and how well a drift budget holds, on labels and noise unseen",
    "resampled": "what plans lose that are resampled for other steps and guidance, beside plans calibrated there",
    "demo": "Frechet distances of a bundled demo's samples (EfficientNet-Lite0 features)",
    "demo-clips": "attention MACs and drift of a small Open-Sora trained on clips, at five thresholds",
    "kernels": "time every attention kernel that runs here, over the shapes of DiT, PixArt and a video model (GPU)",
    "families": "time and memory of eager sampling for every family, images and videos, with plans and without",
    "latency": "time sampling with plans and without: eager, compiled, captured",
    "xformers": "DiT-XL by materialised softmax, SDPA and xFormers, equivalence checked first (GPU)",
    "token-order": "losses of a window step and calibrated MACs in each token order, on the bundled demo",
    "readme": "write the result tables of README.md from the files in eval/results",
}

GOES_ON = "interrupted; the same command goes on from here"
INTERRUPTED = {"sample": GOES_ON, "table1": GOES_ON}
# Where a command is not the `main` of the module of its name.
MODULES = {
    "xformers": "xformers_benchmark",  # the command's own name is that of a library
    "fid": "metric_commands:fid",
    "sfid": "metric_commands:sfid",
    "is": "metric_commands:inception_score",
    "kid": "metric_commands:kid",
    "precision-recall": "metric_commands:precision_and_recall",
}

USAGE = "usage: python -m eval COMMAND [options]\n\ncommands:\n" + "\n".join(
    f"  {name:<16} {what}" for name, what in COMMANDS.items()
)
EPILOG = """
examples:
  python -m eval sample --n 64 --out runs/d2 --plan demo-dpm50-mrae-0.05
  python -m eval demo --art node_modules      the packages named in ditfastattn/demo/ART.md
  python -m eval demo --help
  python -m eval demo-clips --model build/clips/pipeline
  python -m eval agreement --kernels triton,xformers --dtype fp16
  python -m eval kernels --quick
  python -m eval xformers --quick
  python -m eval token-order --every 8        every eighth step of the trajectory
  python -m eval similarity runs/d2 runs/full
  python -m eval report runs/full runs/d2 --reference imagenet512.npz
  python -m eval table1 --model facebook/DiT-XL-2-512 --imagenet ILSVRC2012/train
  python -m eval stats imagenet/train --size 512 --out imagenet512.npz
  python -m eval fid runs/d2 imagenet512.npz --weights pt_inception-2015-12-05-6726825d.pth --json fid.json
  python -m eval is runs/d2 --network efficientnet-lite0
  python -m eval readme
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for what the user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + "\n" + EPILOG)
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2

    def command() -> int:
        if os.environ.get("WORLD_SIZE", "1") == "1":  # else one process of several tells what is wrong
            _parser(name).parse_args(rest)  # before all that the command needs is imported
        module, _, function = MODULES.get(name, name.replace("-", "_")).partition(":")
        getattr(import_module(f"eval.{module}"), function or "main")(rest)
        return 0

    return run(command, INTERRUPTED.get(name, "interrupted"))


def _parser(name: str) -> Parser:
    if MODULES.get(name, "").startswith("metric_commands:"):
        from eval.arguments import metric

        return metric.parser(name)
    parser: Parser = import_module(f"eval.arguments.{name.replace('-', '_')}").parser()
    return parser
