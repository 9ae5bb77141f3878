"""The picture of ``python -m eval cost``: a bar for every row of the tables."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ditfastattn.cost import CostTable
from plans.files import write_whole

COLOURS = ("#888888", "#56B4E9", "#D55E00")  # of Okabe and Ito, which the colour-blind can tell apart


def plot(tables: Sequence[CostTable], file: Path) -> None:
    """Microseconds of every row, a group of bars a row and a colour a runtime; long bars do not hide short ones."""
    names = list(dict.fromkeys(name for table in tables for name in table.microseconds))
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(names)), dpi=130, layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(tables)
    for place, (table, colour) in enumerate(zip(tables, COLOURS, strict=False)):
        known = [(at, table.microseconds[name]) for at, name in enumerate(names) if name in table.microseconds]
        where = [at + (place - (len(tables) - 1) / 2) * height for at, _ in known]
        axes.barh(where, [us for _, us in known], height, color=colour, label=table.key.runtime)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("microseconds: of one block, or of one step")
    key = tables[0].key
    axes.set_title(f"{key.model}, {key.batch} rows of {key.tokens} tokens, {key.dtype}, {key.device}", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
    write_whole(file, lambda stream: figure.savefig(stream, format="png"))
