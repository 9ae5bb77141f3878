"""The same few images by one method a line, at several shares of the MACs, under the uncompressed ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibration.drift import Images
from calibration.picture import save_grid
from eval.pareto_file import nearest

COLUMNS = 4  # images a share
METHODS = ("fewer steps", "FORA", "TaylorSeer-like", "skip", "PAB", "SmoothCache", "cache-dit DBCache",
           "cache-dit DBCache + TaylorSeer", "DiTFastAttn", "ours, attention only", "ours")  # fmt: skip


class Shown(NamedTuple):
    row: dict[str, Any]  # of pareto.json
    pixels: Tensor  # (N, H, W, 3) uint8, the first N images


def save(file: Path, model: str, base: int, reference: Tensor, drawn: Sequence[Shown], shares: Sequence[float]) -> None:
    """For each share the images of every method's row that is nearest to it; where none is near, white.

    Args:
        model, base: the rows', and the number of steps that they are a part of.
        reference: as ``pixels`` of the others, uncompressed.
    """
    pixels = {id(shown.row): shown.pixels[:COLUMNS] for shown in drawn}
    reference = reference[:COLUMNS]
    found = [{row["method"]: row for row in nearest([shown.row for shown in drawn], share)} for share in shares]
    lines = [("uncompressed", Images(torch.empty(0), reference.repeat(len(shares), 1, 1, 1)))]
    for method in METHODS:
        rows = [methods.get(method) for methods in found]
        if any(rows):
            parts = [torch.full_like(reference, 255) if row is None else pixels[id(row)] for row in rows]
            lines.append((f"{method}\n{_cost(rows)}", Images(torch.empty(0), torch.cat(parts))))
    names = [f"{share:.0%}" if image == 0 else "" for share in shares for image in range(len(reference))]
    save_grid(file, lines, names, f"{model}, {base} steps; every share has the same images")


def _cost(rows: Sequence[dict[str, Any] | None]) -> str:
    """MACs, and speed-ups where they were measured."""
    macs = " / ".join("-" if row is None else f"{row['total_macs']:.0f}" for row in rows) + " %"
    if all(row is None or row["speedup"] is None for row in rows):
        return macs
    times = " / ".join("-" if row is None or row["speedup"] is None else f"{row['speedup']:.2f}" for row in rows)
    return f"{macs}\n{times} x"
