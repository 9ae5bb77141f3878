"""The tables of pareto.json: at a few speedups, the plan found for it and the best other methods; distances to real
images; and speed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.pareto_file import SPEED_ALONE, speed_alone, without_other_searches
from eval.record import source_line

SPEEDUPS = {50: (1.3, 1.6, 2.0), 20: (1.2, 1.5)}  # by base steps
CLOSE = 0.96  # of a speedup, that counts as it


def images(result: Mapping[str, Any], file: str) -> list[str]:
    """The table of models with images, and where it comes from."""
    runs = [run for run in result["runs"] if run.get("weights") != "random"]
    devices = " and ".join(dict.fromkeys(run["device"] for run in runs))
    versions = ", ".join(f"{name} {version}" for name, version in runs[0]["versions"].items())
    dates = ", ".join(sorted({run["date"] for run in runs}))
    note = (
        f"Others are those at least {CLOSE:g} times as fast as asked for, the nearest first. "
        "PSNR to the uncompressed images of as many steps, the mean over images; x: times as fast as the uncompressed "
        "model compiled as a whole and captured, 32 images at once in float16, the sampling loop alone"
        f"{_spread(result, False)}. By `python -m eval pareto` on one {devices}; {versions}; {dates}; "
        f"{len(runs)} runs, whose commands are in [{file}]({file})."
    )
    return [*at_speedups(result["rows"]), "", note]


def distances(result: Mapping[str, Any], file: str) -> list[str]:
    """The table of Frechet distances, and what they are to."""
    runs = [run for run in result["runs"] if "fd" in run]
    if not runs:
        return ["Not measured yet: `python -m eval pareto --fd 5000`."]
    rows = [row for row in result["rows"] if row["fd"] is not None]
    kept = [id(row) for row in without_other_searches(result["rows"])]
    columns = sorted({(row["model"], -row["base_steps"]) for row in rows})
    names = [f"{model}, {-base} steps" for model, base in columns]
    lines = [f"| way | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for method in dict.fromkeys(row["method"] for row in sorted(rows, key=lambda row: row["method"] != "full")):
        mine = [row for row in rows if row["method"] == method]
        cells = [
            "; ".join(
                _distance(row) + "*" * (id(row) not in kept)
                for row in mine
                if (row["model"], -row["base_steps"]) == column
            )
            for column in columns
        ]
        lines.append(f"| {'uncompressed' if method == 'full' else method} | {' | '.join(cells)} |")
    told = "; ".join(dict.fromkeys(run["fd"] for run in runs))
    return [
        *lines,
        "",
        f"In brackets the MACs and the PSNR; *: by another search than the plan that ships. {told}. "
        f"In [{file}]({file}), with the commands.",
    ]


def _distance(row: Mapping[str, Any]) -> str:
    near = "" if row["psnr"] is None else f" ({row['total_macs']:.0f} %, {row['psnr']:.1f} dB)"
    return f"{row['fd']:.1f}{near}"


def speed(result: Mapping[str, Any], file: str) -> list[str]:
    """The table of models of random weights, and where it comes from."""
    runs = [run for run in result["runs"] if run.get("weights") == "random"]
    if not runs:
        return ["Not measured yet: `python -m eval pareto-speed`."]
    timed = [f"{model}: {how}." for model, how in dict.fromkeys((run["model"], run["timed"]) for run in runs)]
    note = (
        f"{SPEED_ALONE.capitalize()}: MACs of attention and MLPs in percent of the uncompressed run's, and times as "
        f"fast as that run{_spread(result, True)}. {' '.join(timed)}"
    )
    return [*speeds(result["rows"]), "", note, "", *dict.fromkeys(source_line(run, file) for run in runs)]


def _spread(result: Mapping[str, Any], alone: bool) -> str:
    """What brackets hold, where there are some; ``alone``: in rows of random weights."""
    rows = [row for row in result["rows"] if speed_alone(row) is alone]
    known = any(row.get("speedup_low") is not None for row in rows)
    return ", in brackets the quartiles over rounds where they were kept" if known else ""


def at_speedups(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: what ours gave at each speedup, beside the best two other methods that are as fast."""
    lines = ["| model, steps | faster | ours | best other | next |", "|---" * 5 + "|"]
    rows = [row for row in rows if not speed_alone(row)]
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
    return f"{row['psnr']:.1f} dB, {times(row)} ({how})"


def times(row: Mapping[str, Any]) -> str:
    """ "1.52 x", and the quartiles where they are known and differ: "1.52 x [1.50 to 1.53]"."""
    low, high = (row.get(name) for name in ("speedup_low", "speedup_high"))
    spread = [] if low is None or high is None else [f"{low:.2f}", f"{high:.2f}"]
    return f"{row['speedup']:.2f} x" + (f" [{' to '.join(spread)}]" if len(set(spread)) > 1 else "")


def speeds(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: MACs and speed-up of every way on models of random weights, a column for each and its steps.

    A number of steps is named by its share of the base's.
    """
    rows = [row for row in rows if speed_alone(row)]
    columns = sorted({(row["model"], -row["base_steps"]) for row in rows})
    names = [f"{model}, {-base} steps" for model, base in columns]
    cells: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for row in rows:
        how = row["setting"].removesuffix(f"; {SPEED_ALONE}")
        if row["method"] == "fewer steps":
            how = f"{row['total_macs']:.0f} %"
        here = cells.setdefault((row["method"], how), {})
        here[row["model"], -row["base_steps"]] = f"{row['total_macs']:.0f} %, {times(row)}"
    order = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| way | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for method, how in sorted(cells, key=lambda way: (order.index(way[0]), way[1])):
        found = [cells[method, how].get(column, "") for column in columns]
        lines.append(f"| {method}, {how} | {' | '.join(found)} |")
    return lines
