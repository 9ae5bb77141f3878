"""The table of pareto.json: of every method the row nearest to a few shares of the MACs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.pareto_file import nearest
from eval.pareto_grid import METHODS

SHARES = (0.8, 0.5, 0.35)


def table(rows: Sequence[dict[str, Any]], methods: Sequence[str] = METHODS) -> list[str]:
    """Lines of Markdown: a column for each share, a line for each method, model and number of base steps.

    A cell: MACs, PSNR, and where they were measured speed-up and Frechet distance.
    """
    heads = ["model, steps", "method", *(f"near {share:.0%} of MACs" for share in SHARES)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for model, base in dict.fromkeys((row["model"], row["base_steps"]) for row in rows):
        here = [row for row in rows if (row["model"], row["base_steps"]) == (model, base)]
        near = [{row["method"]: row for row in nearest(here, share)} for share in SHARES]
        full = next((row["fd"] for row in here if row["method"] == "full"), None)
        lines += [f"| {model}, {base} | uncompressed | FD {full:.1f} |" + " |" * (len(SHARES) - 1)] if full else []
        for method in methods:
            if any(method in found for found in near):
                cells = [_cell(found.get(method)) for found in near]
                lines.append(f"| {model}, {base} | {method} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    parts = [f"{row['total_macs']:.0f} %", "equal" if row["psnr"] is None else f"{row['psnr']:.1f} dB"]
    parts += [] if row["speedup"] is None else [f"{row['speedup']:.2f} x"]
    parts += [] if row["fd"] is None else [f"FD {row['fd']:.1f}"]
    return ", ".join(parts)
