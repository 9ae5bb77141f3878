"""Latency against the plan's share of attention MACs, with what Amdahl's law allows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = 2
_LEGEND = 2.3  # inches, beside the last panel


def plot(results: Sequence[dict[str, Any]], file: Path) -> None:
    """One panel for each model and batch: a step's time of every plan, the baselines as lines.

    The bound runs from all FULL to a plan that shares all attention: what a plan takes if its attention costs time as
    it costs MACs.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(results) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(6 * COLUMNS, 4.2 * rows), squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, result in zip(axes.flat, results, strict=False):
        _panel(axis, result)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_parts(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Stacked bars of where a step's time goes, one panel for each model and batch; nothing where nothing is known."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    known = [(result, [r for r in result["rows"] if r["parts_ms"]]) for result in results]
    known = [(result, rows) for result, rows in known if rows]
    if not known:
        return
    figure, axes = plt.subplots(1, len(known), figsize=(_LEGEND - 0.3 + 4.2 * len(known), 4.6), squeeze=False)
    for axis, (result, rows) in zip(axes[0], known, strict=True):
        rows = sorted(rows, key=lambda row: -row["attention_macs"])
        names = [f"{row['attention_macs']:.0f}" for row in rows]
        foot = [0.0] * len(rows)
        for color, part in enumerate(rows[0]["parts_ms"]):
            values = [row["parts_ms"][part] for row in rows]
            axis.bar(names, values, bottom=foot, color=f"C{color}", label=part)
            foot = [a + b for a, b in zip(foot, values, strict=True)]
        rest = [max(0.0, row["ms_per_step"] - total) for row, total in zip(rows, foot, strict=True)]
        axis.bar(names, rest, bottom=foot, color="0.85", label="embedding, head, gaps, host")
        axis.set(xlabel="attention MACs of the plan, %", ylabel="transformer, ms a step")
        axis.set_title(f"{result['model']}, batch {result['batch']}\n{result['device']}", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], fontsize=8, loc="center right")
    figure.tight_layout(rect=(0, 0, 1 - _LEGEND / figure.get_figwidth(), 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _panel(axis: Any, result: dict[str, Any]) -> None:
    ours = sorted((r["attention_macs"], r["ms_per_step"]) for r in result["rows"] if r["variant"].startswith("ours"))
    lines = [r for r in result["rows"] if not r["variant"].startswith("ours")]
    (least, floor), (most, full) = ours[0], ours[-1]
    if least < most:
        at_zero = floor - (full - floor) / (most - least) * least
        axis.plot([0, most], [at_zero, full], ":", color="C2", label="bound: time as MACs (Amdahl)")
    axis.plot(*zip(*ours, strict=True), "o-", color="C0", label="ours, compiled + graphs")
    shown = [row for row in lines if row["ms_per_step"] < 2 * full]
    for row, color in zip(shown, ("C1", "C3", "C7"), strict=False):
        axis.axhline(row["ms_per_step"], color=color, linestyle="--", linewidth=1, label=row["variant"])
    beyond = [f"{row['variant']} {row['ms_per_step']:.1f} ms" for row in lines if row not in shown]
    title = (
        f"{result['model']}, batch {result['batch']}, {result['steps']} steps\n{result['device']}, {result['dtype']}"
    )
    axis.set_title(title + (f" (not shown: {', '.join(beyond)})" if beyond else ""), fontsize=9)
    axis.set(xlim=(0, 104), xlabel="attention MACs, % of full (projections counted)", ylabel="transformer, ms a step")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
