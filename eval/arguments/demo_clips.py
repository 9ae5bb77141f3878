"""The options of ``python -m eval demo-clips``."""

from pathlib import Path

from ditfastattn.console import Parser
from ditfastattn.kernel_names import NAMES
from eval.arguments.common import DEVICE

THRESHOLDS = (0.01, 0.02, 0.03, 0.04, 0.05)


def parser() -> Parser:
    p = Parser(
        prog="python -m eval demo-clips",
        description="What plans of a trained Open-Sora in small save and cost, at several thresholds.",
    )
    p.add_argument("--model", type=Path, required=True, help="pipeline/ of python -m ditfastattn.demo.train_clips")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo-clips"),
        help="folder of the .json and the pictures (runs/demo-clips)",
    )
    p.add_argument("--name", default="demo_clips", help="of the files (demo_clips)")
    p.add_argument("--plans", type=Path, help="also save the plans in this folder")
    p.add_argument("--threshold", type=float, nargs="+", default=list(THRESHOLDS))
    p.add_argument("--sampler", choices=["dpm", "ddim", "iddpm"], default="dpm")
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--guidance", type=float, default=2.5)
    p.add_argument("--frames", type=int, default=16)
    p.add_argument("--n-calib", type=int, default=4, help="captions to calibrate on")
    p.add_argument("--n", type=int, default=8, help="other captions to compare on, from other noise")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--kernel", choices=NAMES, default="sdpa")
    p.add_argument("--device", help=DEVICE)
    return p
