"""The options of ``python -m eval stats``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import add_network


def parser() -> Parser:
    p = Parser(
        prog="python -m eval stats",
        description="Reference statistics of real images, for the FID and sFID, made once and kept.",
    )
    p.add_argument("images", type=Path, help="folder (class folders or flat), or .npz with arr_0 or with mu and sigma")
    p.add_argument("--size", type=int, required=True, help="side in pixels: ADM's centre crop of a folder's images")
    p.add_argument("--out", type=Path, default=Path("stats.npz"), help="the file to write (stats.npz)")
    p.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read, and say so")
    add_network(p)
    return p
