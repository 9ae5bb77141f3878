"""Latency against the plan's share of attention MACs, with what Amdahl's law allows."""

from pathlib import Path
from typing import Any


def plot(result: dict[str, Any], file: Path) -> None:
    """One panel for each batch: a step's time of every plan, the baselines as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    batches = list(dict.fromkeys(row["batch"] for row in result["rows"]))
    figure, axes = plt.subplots(1, len(batches), figsize=(5.2 * len(batches), 4.2), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        rows = [row for row in result["rows"] if row["batch"] == batch]
        ours = sorted((r["attention_macs"], r["ms_per_step"]) for r in rows if r["variant"].startswith("ours"))
        axis.plot(*zip(*ours, strict=True), "o-", color="C0", label="ours")
        for row, color in zip(
            [r for r in rows if not r["variant"].startswith("ours")], ("C7", "C1", "C3"), strict=False
        ):
            axis.axhline(row["ms_per_step"], color=color, linestyle="--", linewidth=1)
            axis.annotate(row["variant"], (0, row["ms_per_step"]), color=color, fontsize=8, va="bottom")
        axis.set(xlim=(0, 104), xlabel="attention MACs, % of full (projections counted)", title=f"batch {batch}")
        axis.set_ylabel("transformer, ms a step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.suptitle(
        f"{result['rows'][0]['model']}, {result['device']}, {result['dtype']}: {result['what'].split(';')[0]}"
    )
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
