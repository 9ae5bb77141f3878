"""The options of ``python -m eval cost``."""

from pathlib import Path

from ditfastattn.console import Parser
from ditfastattn.kernel_names import NAMES
from eval.arguments.common import DEMO, DEVICE, IMAGES


def parser() -> Parser:
    parser = Parser(
        prog="python -m eval cost",
        description="What everything that a plan decides costs, by formula and measured on the model itself.",
    )
    add = parser.add_argument
    add("--model", default=DEMO, help=f"{', '.join(IMAGES)}, or a pipeline folder (default: %(default)s)")
    add("--images", type=int, nargs="+", default=[1, 8], help="each takes two rows, with guidance (default: 1 8)")
    add("--kernel", default="auto", choices=NAMES)
    add("--window", help="keys seen on each side: 32, or 32,16 for left,right (default: tokens // 8, or the plan's)")
    add("--plan", type=Path, help="a plan of this model: how long will a run of it take?")
    add("--dtype", choices=("float16", "bfloat16", "float32"), help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--device", help=DEVICE)
    add("--eager", action="store_true", help="leave out the compiled blocks, which take a while to prepare")
    add("--refresh", action="store_true", help="measure again what is on disk")
    add("--plot", type=Path, help="a picture of the tables of the last batch: a .png")
    add("--check", action="store_true", help="time whole runs of some plans too, by the last runtime, and compare")
    add("--steps", type=int, default=50, help="of these runs (default: 50)")
    add("--repeats", type=int, default=7, help="of these runs, for a median (default: 7)")
    add("--out", type=Path, help="the .json file that --check writes to")
    return parser
