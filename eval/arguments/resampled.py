"""The options of ``python -m eval resampled``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEVICE

LIBRARY = Path("plans/library")
PLANS = [LIBRARY / f"demo-dpm50-mrae-{threshold}.json" for threshold in ("0.025", "0.05", "0.1", "0.15")]


def parser() -> Parser:
    p = Parser(
        prog="python -m eval resampled",
        description="What a plan loses that is resampled for other steps or guidance, beside plans that were "
        "calibrated there.",
    )
    add = p.add_argument
    add("--model", default="demo", help="a pipeline conditioned on labels (default: demo)")
    add("--plans", type=Path, nargs="+", default=PLANS, metavar="PLAN", help="of one run of it (the demo's that ship)")
    add("--steps", type=int, nargs="*", default=[10, 20, 30, 40], metavar="N", help="other steps (10 20 30 40)")
    add("--scales", type=float, nargs="*", default=[2.0, 7.0], metavar="S", help="other guidance (2 7)")
    add("--near", type=float, default=1.0, metavar="P", help="percent of attention MACs that count as equal (1)")
    add("--tries", type=int, default=4, help="calibrations for one plan at one target, at most (4)")
    add("--labels", type=int, default=8, help="images calibrated on where a plan does not say which (8)")
    add("--n", type=int, default=128, help="other images that all are compared on (128)")
    add("--batch", type=int, default=64)
    add("--seed", type=int, default=0)
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    add("--device", help=DEVICE)
    add("--compile", action="store_true", help="search with compiled blocks")
    add("--out", type=Path, default=Path("runs/resampled"), help="folder of resampled.json, or of "
        "resampled-MODEL.json (runs/resampled)")  # fmt: skip
    return p
