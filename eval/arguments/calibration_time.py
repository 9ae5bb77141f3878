"""The options of ``python -m eval calibration-time``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEVICE, IMAGES


def parser() -> Parser:
    p = Parser(
        prog="python -m eval calibration-time",
        description="How long a calibration takes on this device, with the trials of a plan that was made elsewhere.",
    )
    p.add_argument("--model", default="demo", help=f"{', '.join(IMAGES)}, or a pipeline folder; labels as condition")
    p.add_argument("--labels", type=int, default=8, help="images calibrated on (8)")
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--percent", type=float, default=69.0, help="attention MACs of the plan found (69: the paper's D2)")
    p.add_argument("--eager", action="store_true", help="blocks not compiled")
    p.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="bfloat16")
    p.add_argument("--kernel", default="auto")
    p.add_argument("--device", help=DEVICE)
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/calibration-time"),
        help="folder of calibration_time.json (runs/calibration-time)",
    )
    return p
