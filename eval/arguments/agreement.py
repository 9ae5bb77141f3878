"""The options of ``python -m eval agreement``."""

from pathlib import Path

from ditfastattn.console import Parser
from ditfastattn.kernel_names import KERNELS
from eval.arguments.common import DEVICE

LABELS = (0, 9, 18, 27, 36, 45, 54, 63)  # spread over the demo's 65 classes


def parser() -> Parser:
    parser = Parser(
        prog="python -m eval agreement",
        description="How far the demo's images by each kernel are from the reference kernel's.",
    )
    add = parser.add_argument
    add("--plan", type=Path, help="a plan of the demo (default: the shipped one for threshold 0.025)")
    add("--kernels", default=",".join(KERNELS), help="comma-separated names (default: %(default)s)")
    add("--dtype", default="bf16,fp16", help="comma-separated, of bf16, fp16, fp32 (default: %(default)s)")
    add("--labels", type=int, default=len(LABELS), metavar="N", help="images, up to %(default)s (default: all)")
    add("--seed", type=int, default=0)
    add("--device", help=DEVICE)
    add(
        "--out",
        type=Path,
        default=Path("runs/agreement"),
        help="folder for agreement.json and agreement.png (runs/agreement)",
    )
    return parser
