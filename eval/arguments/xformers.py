"""The options of ``python -m eval xformers``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEVICE


def parser() -> Parser:
    parser = Parser(
        prog="python -m eval xformers",
        description="DiT by materialised softmax, by SDPA and by xFormers, the weights kept.",
    )
    add = parser.add_argument
    add("--model", help="folder, hub id or .pt of a trained DiT (default: XL/2 and XL/4 at 256 px, random weights)")
    add("--batches", default="10,50,100,200", help="images of a call (default: %(default)s)")
    add("--images", type=int, default=50, help="images of a whole run (default: %(default)s)")
    add("--steps", type=int, default=50, help="sampler steps of a run (default: %(default)s)")
    add("--repeats", type=int, default=5, help="timed calls of each variant (default: %(default)s)")
    add("--runs", type=int, default=1, help="timed runs of each variant (default: %(default)s)")
    add("--device", help=DEVICE)
    add("--dtype", choices=["bfloat16", "float16", "float32"], help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--quick", action="store_true", help="two narrow layers, two small batches, two steps: does it run at all?")
    add(
        "--out",
        type=Path,
        default=Path("runs/xformers"),
        help="folder for xformers.json and its two pictures (runs/xformers)",
    )
    return parser
