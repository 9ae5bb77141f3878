"""The options of ``python -m eval drift``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEVICE


def parser() -> Parser:
    p = Parser(
        prog="python -m eval drift",
        description="What weighting by sensitivity is worth, and how well a drift budget holds: on other "
        "noise, classes and guidance.",
    )
    add = p.add_argument
    add("--model", default="demo", help="a pipeline conditioned on labels (default: demo)")
    add("--steps", type=int, default=20)
    add("--reference-steps", type=int, default=50, help="of the uncompressed images of the PSNR (50)")
    add("--guidance", type=float, default=4.0)
    add("--labels", type=int, default=8, help="images calibrated on (8)")
    add("--n", type=int, default=256, help="other images that the thresholds are compared on (256)")
    add("--batch", type=int, default=64)
    add("--mrae", type=float, nargs="*", default=[0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025], metavar="T")
    add("--drift", type=float, nargs="*", default=[0.0025, 0.005, 0.01, 0.02, 0.04, 0.08], metavar="T")
    add("--macs", type=float, default=70.0, help="percent of attention MACs at which the losses are compared (70)")
    add("--budgets", type=float, nargs="*", default=[0.1, 0.2, 0.3], metavar="D")
    add("--seeds", type=int, default=10, help="other seeds that a budget is tested on (10)")
    add("--classes", type=int, default=10, help="batches of other classes (10)")
    add("--scales", type=float, nargs="*", default=[2.0, 3.0, 6.0], metavar="S", help="other guidance (2 3 6)")
    add("--seed", type=int, default=0)
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    add("--device", help=DEVICE)
    add("--compile", action="store_true", help="search with compiled blocks")
    add(
        "--out", type=Path, default=Path("runs/drift"), help="folder of drift.json, or of drift-MODEL.json (runs/drift)"
    )
    return p
