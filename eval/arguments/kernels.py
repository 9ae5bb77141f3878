"""The options of ``python -m eval kernels``."""

from pathlib import Path

from ditfastattn.console import Parser
from ditfastattn.kernel_names import KERNELS

QUICK = (16, 16, 1024, 72)


def parser() -> Parser:
    parser = Parser(
        prog="python -m eval kernels",
        description="Times of attention kernels on this GPU, beside what its memory and arithmetic allow.",
    )
    parser.add_argument("--quick", action="store_true", help=f"one shape, {QUICK}, bf16, no curve")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="comma-separated names (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=90, metavar="SECONDS",
                        help="what each kernel may take to compile, in all (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/kernels"), help="folder for kernels.json and kernels.png (runs/kernels)"
    )
    parser.add_argument("--replot", action="store_true", help="only draw kernels.png again, from kernels.json")
    return parser
