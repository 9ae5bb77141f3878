"""The options of ``python -m eval pareto-speed``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.paper import PAPER_SHARES

METHODS = ("full", "fewer steps", "FORA", "TaylorSeer-like", "skip", "PAB", "DiTFastAttn")


def parser() -> Parser:
    p = Parser(
        prog="python -m eval pareto-speed",
        description="Speed alone, of the ways that `python -m eval pareto` compares, on published geometries with "
        "random weights.",
        epilog="example:\n  python -m eval pareto-speed --model pixart-sigma-2k --base-steps 20 --repeats 1",
    )
    p.add_argument("--model", default="dit-xl-2-512", choices=tuple(PAPER_SHARES), help="(dit-xl-2-512)")
    p.add_argument("--base-steps", type=int, nargs="+", default=[50, 20])
    p.add_argument("--only", nargs="+", choices=METHODS, help="what is measured anew (all)")
    p.add_argument("--batch", type=int, default=1, help="images; each takes two rows with guidance (1)")
    p.add_argument("--repeats", type=int, default=9, help="timed runs of each way (9)")
    p.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="bfloat16")
    p.add_argument("--device", default="cuda", help="a GPU")
    p.add_argument("--out", type=Path, default=Path("runs/pareto"), help="folder of pareto.json (runs/pareto)")
    return p
