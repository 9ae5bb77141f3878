"""The options of ``python -m eval latency``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEMO, DEVICE, IMAGES


def parser() -> Parser:
    p = Parser(
        prog="python -m eval latency",
        description="How long sampling takes with a plan and without: the transformer alone and the whole pipeline.",
        epilog="example:\n  python -m eval latency --model dit-xl-2-512 --batch 1 8\n"
        "  python -m eval latency --model demo --plan plans/library/demo-dpm50-mrae-0.05.json",
    )
    p.add_argument("--model", default=DEMO, help=f"{', '.join(IMAGES)}, or a pipeline folder")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images; each takes two rows with guidance")
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--shares", type=float, nargs="+", help="attention MACs of the synthetic plans, percent")
    p.add_argument("--plan", type=Path, help="a calibrated plan to time instead of synthetic ones")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--no-eager", action="store_true", help="leave out diffusers' eager default and the compiled rows")
    p.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="bfloat16")
    p.add_argument("--kernel", default="auto")
    p.add_argument("--device", help=DEVICE)
    p.add_argument(
        "--out", type=Path, default=Path("runs/latency"), help="folder of latency.json and .png (runs/latency)"
    )
    return p
