"""The options of ``python -m eval similarity``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEVICE


def parser() -> Parser:
    p = Parser(
        prog="python -m eval similarity",
        description="Image or video i of one run against i of another: PSNR, SSIM, LPIPS, relative L2 of the latents.",
        epilog="example:\n  python -m eval similarity runs/d2 runs/full --out similarity",
    )
    p.add_argument("a", type=Path, help="a folder of python -m eval sample, say compressed")
    p.add_argument("b", type=Path, help="another from the same noise, say uncompressed: what A is measured against")
    p.add_argument("--lpips", default="auto", metavar="auto|none|FILE",
                   help="auto: ST-LPIPS of the package stlpips_pytorch where it is installed; or a file of "
                   "torchvision's AlexNet or VGG16 weights for LPIPS (default: auto)")  # fmt: skip
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--device", help=DEVICE)
    p.add_argument("--out", type=Path, help="folder for similarity.json and similarity.png (default: A)")
    return p
