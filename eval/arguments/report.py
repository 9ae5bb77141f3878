"""The options of ``python -m eval report``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEVICE, INCEPTION, LITE0

LATENCY = Path("eval/results/latency.json")


def parser() -> Parser:
    p = Parser(
        prog="python -m eval report",
        description="Attention MACs, latency, Frechet distance, Inception Score and the similarity to the uncompressed "
        "run, with the plot of quality against MACs, the same images of every run, and what the paper "
        "reports. Written as Markdown, as one HTML file that opens without a network, and as JSON.",
        epilog="example:\n  python -m eval report runs/full runs/D1 runs/D2 --reference imagenet512.npz --out report\n"
        "  python -m eval report runs/* --reference emoji --network efficientnet-lite0",
    )
    p.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders of python -m eval sample; one without a plan"
    )
    p.add_argument("--reference", type=Path, help="statistics of python -m eval stats, an .npz or a folder of real "
                   "images (default: none, and no Frechet distance)")  # fmt: skip
    p.add_argument("--size", type=int, help="cut a reference folder to this side by ADM's centre crop")
    p.add_argument(
        "--network", help=f"{INCEPTION} (the default with --reference, else none), {LITE0}, module:callable, or none"
    )
    p.add_argument("--weights", type=Path, help="Inception's weights")
    p.add_argument("--lpips", default="auto", metavar="auto|none|FILE", help="as in python -m eval similarity")
    p.add_argument(
        "--latency", type=Path, default=LATENCY, help="file of python -m eval latency (default: %(default)s)"
    )
    p.add_argument("--batch", type=int, default=64, help="images a forward pass (default: %(default)s)")
    p.add_argument("--device", help=DEVICE)
    p.add_argument("--title", help="of the page (default: from the model)")
    p.add_argument("--out", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    return p
