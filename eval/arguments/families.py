"""The options of ``python -m eval families``."""

from pathlib import Path

from ditfastattn.console import Parser
from ditfastattn.kernel_names import NAMES
from eval.arguments.common import DEVICE, IMAGES, VIDEOS

FAMILIES = ("dit-xl-2-512", "pixart-sigma-1k", "pixart-sigma-2k", *VIDEOS)
FILE = "families.json"


def parser() -> Parser:
    p = Parser(
        prog="python -m eval families",
        description="Time and memory of eager sampling in every family of models, without a plan, all FULL, and with "
        "plans.",
        epilog="example:\n  python -m eval families --model latte-1-16x512 open-sora-1.1-16x240p --kernel triton",
    )
    add = p.add_argument
    add(
        "--model",
        nargs="+",
        default=FAMILIES,
        help=f"{', '.join((*IMAGES, *VIDEOS))}, or pipeline folders (default: one of each family)",
    )
    add("--batch", type=int, default=1, help="images or videos; each takes two rows with guidance (default: 1)")
    add("--steps", type=int, default=20)
    add(
        "--shares", type=float, nargs="+", help="attention MACs of the plans, percent (default: the paper's D2, D4, D6)"
    )
    add("--repeats", type=int, default=2, help="timed runs of each variant (default: 2)")
    add("--dtype", choices=("float16", "bfloat16", "float32"), default="bfloat16")
    add("--kernel", choices=NAMES, default="auto")
    add("--device", help=DEVICE)
    add("--out", type=Path, default=Path("runs/families"), help=f"folder of {FILE} (runs/families)")
    return p
