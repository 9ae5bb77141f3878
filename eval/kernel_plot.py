"""The picture of ``python -m eval kernels``: time against the number of tokens, and the same as a share of SDPA's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from eval.timing import ADD, FULL
from plans.files import write_whole

# Okabe and Ito's colours, which the colour-blind can tell apart; one a kernel, in both panels.
COLOURS = {
    "sdpa": "#000000",
    "triton": "#D55E00",
    "flash3": "#0072B2",
    "xformers": "#009E73",
    "varlen": "#CC79A7",
    "flash2": "#56B4E9",
    "flash4": "#E69F00",
    "flex": "#888888",
}
MARKERS = {"flash3": "s", "varlen": "^", "flash2": "v", "flash4": "D", "flex": "x"}  # the others: a dot
HOLLOW = {"markersize": 8, "markerfacecolor": "none"}  # flash3's, seen behind xFormers', which calls it
Row = dict[str, Any]


def plot(curve: Sequence[Row], device: str, file: Path) -> None:
    """Two panels over the tokens: microseconds, with the floors; and window + residual over SDPA's full attention."""
    figure = Figure(figsize=(11, 4.8), dpi=130)
    absolute, ratio = figure.subplots(1, 2)
    full = {tokens(row): row["us"] for row in curve if (row["op"], row["kernel"]) == (FULL, "sdpa")}
    ticks = sorted({tokens(row) for row in curve})
    for kernel in sorted({row["kernel"] for row in curve}, key=list(COLOURS).index):
        for op in (FULL, ADD):
            rows = sorted((r for r in curve if (r["op"], r["kernel"]) == (op, kernel)), key=tokens)
            if not rows:
                continue
            style: dict[str, Any] = {"color": COLOURS[kernel], "markersize": 4, "linewidth": 1.4}
            style |= {"linestyle": "--", "marker": ""} if op == FULL else {"marker": MARKERS.get(kernel, "o")}
            style |= HOLLOW if kernel == "flash3" else {}
            where = [tokens(row) for row in rows]
            absolute.plot(where, [row["us"] for row in rows], **style, label=f"{kernel}, {op}")
            if op == ADD:
                ratio.plot(where, [row["us"] / full[tokens(row)] for row in rows], **style)
    for op, line in ((FULL, ":"), (ADD, "-.")):
        floors = sorted({(tokens(row), row["floor_us"]) for row in curve if row["op"] == op})
        where, us = [place for place, _ in floors], [least for _, least in floors]
        absolute.plot(where, us, color="#666666", linestyle=line, linewidth=1.2, label=f"floor, {op}")
        if op == ADD:
            shares = [least / full[place] for place, least in floors]
            ratio.plot(where, shares, color="#666666", linestyle=line, linewidth=1.2)
    ratio.axhline(1, color=COLOURS["sdpa"], linestyle="--", linewidth=1.4)

    _axes(absolute, ticks, "time of one call", "Time")
    absolute.set_yscale("log")
    absolute.yaxis.set_major_formatter(FuncFormatter(lambda us, _: f"{us:g} us" if us < 1000 else f"{us / 1000:g} ms"))
    _axes(ratio, ticks, "time / time of SDPA's full attention", "Window + residual: below 1 it saves time")
    ratio.set_ylim(bottom=0)
    figure.suptitle(f"bf16, 2 x 16 heads of 72, window of N/8 keys on each side, {device}", fontsize=10)
    figure.tight_layout(rect=(0, 0, 0.8, 1))
    figure.legend(*absolute.get_legend_handles_labels(), loc="center right", fontsize=8, frameon=False)
    write_whole(file, lambda beside: figure.savefig(beside, format="png"))


def tokens(row: Row) -> int:
    count: int = row["shape"][2]
    return count


def _axes(axes: Axes, ticks: list[int], label: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=7)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("tokens (N)", fontsize=9)
    axes.set_ylabel(label, fontsize=9)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
