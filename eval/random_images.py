"""Random images in ADM's .npz form, written as they are drawn: to try the metrics at full size in little memory.

python -m eval.random_images random.npz --n 50000 --size 64
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from plans.files import write_whole

CHUNK = 500


def write(path: Path, count: int, size: int, seed: int = 0) -> None:
    """(count, size, size, 3) uint8 as arr_0. Each image is uniform noise around a colour of its own, so that the
    features vary. The same numbers for the same arguments."""
    rng = np.random.default_rng(seed)

    def fill(beside: Path) -> None:
        with (
            zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as stream,
        ):
            head = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
            np.lib.format.write_array_header_1_0(stream, head)
            for start in tqdm(range(0, count, CHUNK), desc="random images", unit_scale=CHUNK, unit="img"):
                n = min(CHUNK, count - start)
                colours = rng.integers(0, 192, (n, 1, 1, 3), dtype=np.uint8)
                stream.write((colours + rng.integers(0, 64, (n, size, size, 3), dtype=np.uint8)).tobytes())

    write_whole(path, fill)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m eval.random_images", description=__doc__.split("\n\n")[0])
    p.add_argument("out", type=Path)
    p.add_argument("--n", type=int, default=50_000)
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    write(args.out, args.n, args.size, args.seed)


if __name__ == "__main__":
    main()
