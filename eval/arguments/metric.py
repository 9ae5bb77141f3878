"""The options of ``python -m eval metric``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import add_network
from eval.metric_settings import Settings

_WHAT = {
    "fid": "FID (Frechet distance of Inception's pooled features) of samples to real images.",
    "sfid": "sFID (the same of Inception's spatial features, as ADM has it) of samples to real images.",
    "is": "Inception Score of samples.",
    "kid": "KID (unbiased polynomial MMD) of samples to real images.",
    "precision-recall": "Precision and recall by nearest neighbours (Kynkaanniemi et al. 2019).",
}


def parser(metric: str) -> Parser:
    p = Parser(prog=f"python -m eval {metric}", description=_WHAT[metric])
    p.add_argument("samples", type=Path, help="run folder of `eval sample`, folder of RGB images, or .npz with arr_0")
    if metric != "is":
        p.add_argument("reference", type=Path, help="real images: .npz of `eval stats` or of ADM, or a folder")
        p.add_argument("--size", type=int, help="cut a reference folder to this side by ADM's centre crop")
        p.add_argument("--skip-unreadable", action="store_true", help="in a reference folder that is cropped")
    defaults = Settings()
    if metric == "is":
        p.add_argument("--splits", type=int, default=defaults.splits, help=f"equal parts ({defaults.splits})")
        p.add_argument("--in-order", action="store_true", help="cut them in file order, as ADM does, not permuted")
    if metric in ("is", "kid"):
        p.add_argument("--seed", type=int, default=defaults.seed, help=f"of permutation or subsets ({defaults.seed})")
    if metric == "kid":
        p.add_argument("--subsets", type=int, default=defaults.subsets, help=f"how many ({defaults.subsets})")
        p.add_argument("--subset-size", type=int, default=defaults.subset_size, help=f"images ({defaults.subset_size})")
    if metric == "precision-recall":
        p.add_argument("--neighbours", type=int, default=defaults.neighbours, help=f"k ({defaults.neighbours})")
    add_network(p)
    p.add_argument("--json", type=Path, help="also write the result here, with all that made it")
    return p
