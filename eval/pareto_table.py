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


SPEEDUPS = {50: (1.3, 1.6, 2.0), 20: (1.2, 1.5)}  # by base steps
CLOSE = 0.97  # of a speedup, that counts as it


def at_speedups(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: what ours gave at each speedup, beside the best two other methods that are as fast."""
    lines = ["| model, steps | faster | ours | best other | next |", "|---" * 5 + "|"]
    for model, base in dict.fromkeys((row["model"], row["base_steps"]) for row in rows):
        here = [row for row in rows if (row["model"], row["base_steps"]) == (model, base) and row["psnr"] is not None]
        for speedup in SPEEDUPS.get(base, ()):
            fast = sorted(
                (row for row in here if row["speedup"] is not None and row["speedup"] >= CLOSE * speedup),
                key=lambda row: -row["psnr"],
            )
            asked = f"{speedup:g} x: "
            mine = [row for row in here if row["method"] == "ours" and row["setting"].startswith(asked)][:1]
            others = {row["method"]: row for row in reversed(fast) if not row["method"].startswith("ours")}
            best = sorted(others.values(), key=lambda row: -row["psnr"])[:2]
            cells = [_at(row) for row in (*mine, *[None] * (1 - len(mine)), *best, *[None] * (2 - len(best)))]
            lines.append(f"| {model}, {base} | {speedup:g} x | " + " | ".join(cells) + " |")
    return lines


def _at(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    name, _, what = row["setting"].partition(": ") if row["method"] == "ours" else (row["method"], "", row["setting"])
    how = what if row["method"] == "ours" else f"{name} {what}"
    return f"{row['psnr']:.1f} dB, {row['speedup']:.2f} x ({how})"
