"""The drawings that the demos were trained on, as one file of images for `python -m eval`.

    python -m ditfastattn.demo.drawings --art node_modules --out build/emoji.npz

Held-out drawings are left out. Their features are what the Fréchet distances of `python -m eval pareto` are to.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ditfastattn.demo.data import prepare
from plans import PlanError
from plans.files import write_whole


def training_drawings(art: Path) -> np.ndarray:
    """(N, 64, 64, 3) uint8: each icon once, as it is, in the order of its class."""
    found = prepare(art, drawings=1)
    return found.images[~found.held_out, 0]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ditfastattn.demo.drawings", description=__doc__.split("\n\n")[0])
    parser.add_argument("--art", type=Path, required=True, help="the node_modules folder with the packages of ART.md")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    args = parser.parse_args(argv)
    if args.out.suffix != ".npz":
        parser.error(f"--out {args.out} must end in .npz")

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            np.savez_compressed(file, arr_0=images)

    try:
        images = training_drawings(args.art)
        write_whole(args.out, write)
    except (FileNotFoundError, PlanError) as error:
        parser.error(str(error))
    print(f"{len(images)} drawings in {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
