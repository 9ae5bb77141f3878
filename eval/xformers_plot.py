"""The two charts of ``python -m eval xformers``, with the source document's claim written beside what was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLAIMED_SPEEDUP, CLAIMED_IMAGES = 4.63, 50
CLAIM = (
    f"The source document claims {CLAIMED_SPEEDUP} x at {CLAIMED_IMAGES} images. Its code cannot reproduce that for "
    "attention: q, k, v are laid out (B, H, N, D) where xFormers reads (B, N, H, D), so each token attends over its "
    "own heads and no two tokens mix; q is scaled once more although the operator scales by 1/sqrt(D) itself; and its "
    'new linear layers never get the trained weights. "as written" is the time of that computation, which is not this '
    "model."
)
STYLES = {"materialised": "C3", "sdpa": "C0", "xformers": "C2", "as written": "0.7"}


def bars(rows: Sequence[dict[str, Any]], images: int, device: str, file: Path) -> None:
    """Seconds of a whole run by each variant, a group of bars per model; the claim as a mark on the first bar."""
    import matplotlib.pyplot as plt

    runs = [row for row in rows if row["what"] == "run"]
    models, names = _unique(runs, "model"), _unique(runs, "variant")
    figure, axes = plt.subplots(figsize=(7.5, 4.8))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        own = [next(r for r in runs if (r["model"], r["variant"]) == (model, name)) for model in models]
        at = [index + (place - (len(names) - 1) / 2) * width for index in range(len(models))]
        hatch = None if own[0]["equivalent"] else "//"
        drawn = axes.bar(at, [r["seconds"] for r in own], width, label=_label(own[0]), color=STYLES[name], hatch=hatch)
        axes.bar_label(drawn, [f"{r['speedup']:.2f} x" for r in own], fontsize=8, padding=2)
        if name == "materialised":
            for left, row in zip(at, own, strict=True):
                claim = row["seconds"] / CLAIMED_SPEEDUP
                axes.hlines(claim, left - width / 2, left + (len(names) - 0.5) * width, "k", "dotted", linewidth=1)
    axes.plot([], [], "k:", linewidth=1, label=f"where {CLAIMED_SPEEDUP} x, as claimed, would be")
    axes.set_xticks(range(len(models)), models)
    axes.set_ylabel(f"seconds for {images} images")
    axes.set_title(f"A whole run with guidance, eager, {device}; times as fast as materialised softmax", fontsize=9)
    axes.margins(y=0.12)
    axes.legend(fontsize=8)
    _save(figure, file)


def lines(rows: Sequence[dict[str, Any]], device: str, file: Path) -> None:
    """Milliseconds of a transformer call against the number of images, a panel per model."""
    import matplotlib.pyplot as plt

    calls = [row for row in rows if row["what"] == "call"]
    models = _unique(calls, "model")
    figure, panels = plt.subplots(1, len(models), figsize=(4.2 * len(models) + 0.5, 4.4), squeeze=False)
    for axes, model in zip(panels[0], models, strict=True):
        for name in _unique(calls, "variant"):
            own = [row for row in calls if (row["model"], row["variant"]) == (model, name)]
            style = "o-" if own[0]["equivalent"] else "x:"
            values = [1000 * row["seconds"] for row in own]
            axes.plot([row["images"] for row in own], values, style, color=STYLES[name], label=_label(own[0]))
        axes.set_title(f"{model}, {device}", fontsize=9)
        axes.set_xlabel("images (two rows each, with guidance)")
        axes.set_ylabel("ms of one transformer call")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    """With the claim under the chart."""
    import matplotlib.pyplot as plt

    figure.tight_layout(rect=(0, 0.17, 1, 1))
    figure.text(0.02, 0.155, _wrapped(CLAIM, int(figure.get_figwidth() * 15)), fontsize=7, va="top")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _label(row: dict[str, Any]) -> str:
    return row["variant"] if row["equivalent"] else f"{row['variant']} (not attention over tokens)"


def _unique(rows: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))
