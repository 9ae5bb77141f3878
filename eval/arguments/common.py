"""What the options of several commands share."""

import argparse
from pathlib import Path

from ditfastattn.demo import TRANSFORMERS as DEMOS

DTYPES = ("float32", "float16", "bfloat16")
DEVICE = "cpu, cuda, ... (default: cuda if there is one)"

DEMO = "demo"
VIDEOS = ("latte-1-16x512", "open-sora-1.1-16x240p", "open-sora-1.1-16x480p")
IMAGES = ("dit-xl-2-256", "dit-xl-2-512", "pixart-sigma-1k", "pixart-sigma-2k", *DEMOS)  # whose steps can be prepared

INCEPTION, LITE0 = "inception", "efficientnet-lite0"
WEIGHTS = "DITFASTATTN_INCEPTION"  # the environment variable that names Inception's


def add_network(p: argparse.ArgumentParser) -> None:
    """The network of a metric."""
    p.add_argument("--network", default=INCEPTION, help=f"{INCEPTION} (the default), {LITE0}, or module:callable")
    p.add_argument("--weights", type=Path, help=f"Inception's weights (else ${WEIGHTS}, else fetched once)")
    p.add_argument("--batch", type=int, default=64, help="images a forward pass (64)")
    p.add_argument("--device", help=DEVICE)
