"""The options of `python -m ditfastattn.demo.train`, and the presets that the demos were made with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ditfastattn.demo.loop import Recipe

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {},
    # 1,024 tokens. Of the demo's 13 blocks, the 8 that are left when the one whose loss changes the predicted noise
    # least is taken out again and again.
    "long": {
        "start": "demo",
        "blocks": [0, 2, 3, 4, 6, 7, 11, 12],
        "patch": 1,
        "iterations": 11_160,
        "batch": 192,
        "lr": 8e-4,
        "warmup": 300,
        "ema": 0.999,
        "save_every": 1000,
    },
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m ditfastattn.demo.train",
        description="Make a demo: its autoencoder, its transformer, its pictures.",
    )
    add = p.add_argument
    add("--preset", choices=PRESETS, default="demo", help="what the other options are unless given (default: demo)")
    add("--art", type=Path, required=True, help="the node_modules folder with the packages of ART.md")
    add("--out", type=Path, required=True, help="where checkpoints and results go")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    add("--drawings", type=int, default=6, help="drawings of each icon, shifted and zoomed")
    add("--vae-iterations", type=int, default=5000)
    add("--vae-seconds", type=float, help="end the autoencoder's training by then, rate decayed")
    add("--vae-width", type=int, default=48, help="channels at 64 px; twice as many at 32 px")
    add("--start", metavar="PIPELINE", help='take the autoencoder and the first weights of a trained pipeline: "demo" '
        "or a folder; --vae-*, --layers, --heads and --head-dim are then its own")  # fmt: skip
    add("--blocks", type=int, nargs="+", help="the blocks to take of --start (all)")
    add("--patch", type=int, default=2, help="side of a token in latent values; 2 gives 256 tokens, 1 gives 1,024")
    add("--iterations", type=int, default=Recipe.iterations)
    add("--seconds", type=float, help="pause the transformer's training after this time")
    add("--deadline", type=float, help="end the transformer's training this many seconds after the start of the "
        "command, if --iterations are not done before, rate decayed")  # fmt: skip
    add("--batch", type=int, default=Recipe.batch)
    add("--lr", type=float, default=Recipe.lr)
    add("--warmup", type=int, default=Recipe.warmup)
    add("--ema", type=float, default=Recipe.ema, help="decay of the moving average of the weights")
    add("--layers", type=int, default=13)
    add("--heads", type=int, default=3)
    add("--head-dim", type=int, default=64)
    add("--save-every", type=int, default=2000)
    add("--each", type=int, default=8, help="samples of each class in samples.png; 0 for no picture")
    add("--sample-steps", type=int, default=50)
    add("--no-compile", action="store_true", help="do without torch.compile on a GPU")
    return p


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, those of the preset in place of defaults."""
    p = parser()
    p.set_defaults(**PRESETS[p.parse_args(argv).preset])
    return p.parse_args(argv)
