"""The options of ``python -m eval pareto``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEVICE, DTYPES

SOURCES = ("rivals", "smoothcache", "cache-dit", "ours", "paper")
SHARES = (0.8, 0.5, 0.35)  # of the MACs
SPEEDUPS = (1.2, 1.3, 1.5, 1.6, 2.0, 2.5, 3.0)


def parser() -> Parser:
    p = Parser(
        prog="python -m eval pareto",
        description="Quality against cost: fewer steps, the schedules of others, the paper's search, and plans priced "
        "cell by cell.",
    )
    add = p.add_argument
    add("--model", default="demo", help="a pipeline conditioned on labels (default: demo)")
    add("--base-steps", type=int, nargs="+", default=[50, 20])
    add("--guidance", type=float, default=4.0)
    add("--labels", type=int, default=8, help="images calibrated on (8)")
    add("--only", nargs="+", choices=SOURCES, help="what is measured anew (all)")
    add(
        "--speedups",
        type=float,
        nargs="+",
        default=list(SPEEDUPS),
        help=f"that ours are asked for ({' '.join(map(str, SPEEDUPS))})",
    )
    add("--evaluations", type=int, default=60, help="runs that ours are searched by, for each speedup (60)")
    add("--n", type=int, default=256, help="other images that are compared (256)")
    add("--batch", type=int, default=64)
    add("--seed", type=int, default=0)
    add("--dtype", choices=DTYPES, default="float32")
    add("--device", help=DEVICE)
    add("--no-time", action="store_true", help="do not measure speed-ups; a CPU never does")
    add("--time-batch", type=int, default=32, help="images timed together (32)")
    add("--time-dtype", choices=DTYPES, default="float16", help="default: float16")
    add("--repeats", type=int, default=9, help="timed runs of each way (9)")
    add("--again", type=Path, metavar="FILE", help="follow the rows of this pareto.json again, in place and without a "
        "search: measure times, and distances with --fd, and draw the picture; all else stays")  # fmt: skip
    add("--plans", type=Path, metavar="DIR", help="of the plans of these rows (plans/ beside the file)")
    add("--fd", type=int, default=0, metavar="N", help="images drawn for a Frechet distance; 0 measures none (default)")
    add("--fd-reference", type=Path, metavar="FILE", help="real images, or their statistics by eval stats --network "
        "efficientnet-lite0")  # fmt: skip
    add("--fd-dtype", choices=DTYPES, help="that they are drawn in (default: as --dtype)")
    add("--fd-shares", type=float, nargs="+", default=SHARES, metavar="S", help="of the MACs, near which rows get one "
        "(0.8 0.5 0.35)")  # fmt: skip
    add(
        "--out",
        type=Path,
        default=Path("runs/pareto"),
        help="folder of pareto.json, its pictures, and plans/ (runs/pareto)",
    )
    return p
