"""The table of pareto.json: at a few speedups, the plan found for it and the best other methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
