"""The options of ``python -m eval demo``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEVICE


def parser() -> Parser:
    p = Parser(
        prog="python -m eval demo",
        description="How good a demo's pictures are: Frechet distances in EfficientNet-Lite0 features.",
    )
    p.add_argument("--art", type=Path, required=True, help="the node_modules folder with the packages of ART.md")
    p.add_argument("--model", default="demo", help='"demo", "demo-long" or a pipeline folder (default: demo)')
    p.add_argument("--out", type=Path, help="result (default: runs/demo/NAME_quality.json)")
    p.add_argument("--grid", type=Path, help="also write a sheet of samples of each class here")
    p.add_argument("--samples", type=int, default=5000)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--guidance", type=float, default=4.0)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", help=DEVICE)
    return p
