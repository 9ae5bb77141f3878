"""A plan as a picture in the terminal, layers x steps, and what every picture of a plan says about it.

`plans.figure` draws the same as PNG or SVG, in the same colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from textwrap import wrap

from plans.macs import besides, cross_macs, mlp_macs, part_macs, plan_macs, shares, shown_macs, site_macs
from plans.method import Method
from plans.model import SiteName
from plans.schema import Plan

# The darker, the more is computed. Blue against orange, and the lightness, hold for colour-blind readers and in print.
COLORS: dict[Method, str] = {
    Method.FULL: "#1d2b45",
    Method.ASC: "#2f7fc1",
    Method.WA_RS: "#d1495b",
    Method.WA_RS_ASC: "#f2a541",
    Method.AST_2: "#7fae8b",
    Method.AST_1: "#b9d4bb",
    Method.AST: "#f1ead8",
}
MEANINGS: dict[Method, str] = {
    Method.FULL: "every key",
    Method.ASC: "conditional half, copied",
    Method.WA_RS: "window + residual",
    Method.WA_RS_ASC: "both",
    Method.AST_2: "forecast from the last 3 outputs",
    Method.AST_1: "forecast from the last 2 outputs",
    Method.AST: "the last output again",
}

_MARGIN = 6  # "layer " and the layer's number
_TICK = 10
_BARS = " ▁▂▃▄▅▆▇█"
_UNCHANGED = "-"
_NOT_CALLED = " "


def headline(plan: Plan) -> str:
    """Model, size, sampler and guidance in one line; the order of the tokens where it is not the raster's."""
    guidance = "no guidance" if plan.guidance.layout == "none" else f"guidance {plan.guidance.scale:g}"
    order = "" if plan.token_order == "raster" else f", {plan.token_order} order"
    own = " at timesteps of its own" if plan.sampler.own_timesteps else ""
    calls = f", {plan.calls} model calls" if plan.skipped else ""
    sampler = f"{plan.sampler.class_name}, {plan.steps} steps{own}{calls}"
    temporal = plan.model.temporal
    layers = f"{plan.layers} layers"
    if temporal is not None:
        layers = f"{plan.layers} spatial and {temporal.layers} temporal layers, {temporal.frames} frames"
    return f"{plan.model.class_name}, {layers}, {sampler}, {guidance}{order}"


def legend_order(plan: Plan) -> tuple[Method, ...]:
    """FULL first, as one reads a plan: the methods that it has, and those that its calibration could have chosen."""
    shown = {method for site in plan.sites for row in called(plan, site) for method in row if method is not None}
    if plan.calibration is not None:
        shown |= set(plan.calibration.methods)
    return tuple(method for method in reversed(Method) if method in shown)


def noteline(plan: Plan) -> str:
    """What the plan's maker wrote into it, on one line; empty if nothing."""
    line = " ".join(plan.note.split())
    return line if line.isprintable() else repr(line)


def costline(plan: Plan) -> str:
    """Loss and threshold, and attention MACs in both conventions, in one line; what else is planned if any."""
    if plan.calibration is None:
        origin = "" if plan.note else "no record of a calibration; "
    else:
        found = plan.calibration
        origin = f"{found.loss}, threshold {found.threshold:g}; "
        if found.budget is not None:
            origin = f"final drift within {found.budget.asked:g}; "
    module, core = plan_macs(plan, "module"), plan_macs(plan, "core")
    text = f"{origin}attention MACs {module.percent:.1f} % of full (softmax core alone {core.percent:.1f} %)"
    if module.residual_store:
        text += f", and {module.store_percent:.1f} % to store residuals"
    if more := besides(plan):
        text += f"; with {more} {shown_macs(plan).percent:.1f} %"
    return text


def siteline(plan: Plan, site: SiteName) -> str:
    """What a site is, how large, and its MACs, in one line; for plans of more than one site."""
    shape = plan.model.shape(site)
    if site == "model":
        return f"model, its output: {len(plan.skipped)} of {plan.steps} steps are skipped"
    if site == "cross":
        assert plan.model.cross is not None
        words, percent = plan.model.cross.words, cross_macs(plan).percent
        return f"cross, outputs before they are added: {words} words; MACs {percent:.1f} % of full"
    if site == "mlp":
        assert plan.model.mlp is not None
        hidden, percent = plan.model.mlp.hidden, mlp_macs(plan).percent
        return f"mlp, outputs before the gate: hidden width {hidden}; MACs {percent:.1f} % of full"
    macs = site_macs(plan, site)
    if plan.model.temporal is None:
        return f"attn: {shape.tokens} tokens, window {plan.window_of(site)}; MACs {macs.percent:.1f} % of full"
    where = "between the tokens of a frame" if site == "attn" else "between frames"
    share = 100 * macs.full / plan_macs(plan).full
    return (
        f"{site}, {where}: {shape.rows} rows of {shape.tokens} tokens, window {plan.window_of(site)}; "
        f"MACs {macs.percent:.1f} % of full (full is {share:.1f} % of all attention)"
    )


def curve(values: Sequence[float]) -> str:
    """One block character a value, from 0 to the greatest; of the fourth root, so that values 100 times smaller than
    others can still be told apart."""
    greatest = max(values, default=0.0)
    return "".join(_BARS[round((len(_BARS) - 1) * (value / greatest) ** 0.25)] if greatest else " " for value in values)


def timestep_label(timestep: float) -> str:
    """At most four characters for the usual scales, 0 to 1000 and 0 to 1."""
    return f"{timestep:.0f}" if timestep >= 10 else f"{timestep:.2g}"


def terminal(plan: Plan, *, width: int = 80, color: bool = False, unicode: bool = True) -> str:
    """The plan as text, one character per cell, in panels that fit the width.

    Args:
        width: columns of the terminal.
        color: 24-bit ANSI colours behind the letters.
        unicode: block characters for the MACs of each step; else tenths as digits, # for all.
    """
    parts = [headline(plan), costline(plan), *wrap(noteline(plan), max(width, 20)), "", *_legend(plan, color), ""]
    for site in plan.sites:
        if len(plan.sites) > 1:
            parts += [siteline(plan, site), ""]
        heights = [percent / 100 for percent in part_macs(plan, site).step_percents]
        for start, stop in _panels(plan.steps, width):
            parts += _rows(_lettered(plan, site)[start:stop], color)
            bars = "".join(_bar(height, unicode) for height in heights[start:stop])
            parts += [f"{'MACs':>{_MARGIN - 1}} {bars}", *_axis(plan, start, stop), ""]
    return "\n".join(parts)


def changes(before: Plan, after: Plan, site: SiteName = "attn", *, width: int = 80, color: bool = False) -> str:
    """Two grids of one shape as one picture: the new method where a cell changed, a dash where it did not."""
    where = f" of {site}" if len(after.sites) > 1 else ""
    parts = [f"cells{where} as in the second plan; {_UNCHANGED} is unchanged", ""]
    changed = [
        [new if new != old else _UNCHANGED for old, new in zip(*rows, strict=True)]
        for rows in zip(_lettered(before, site), _lettered(after, site), strict=True)
    ]
    for start, stop in _panels(after.steps, width):
        parts += [*_rows(changed[start:stop], color), *_axis(after, start, stop), ""]
    return "\n".join(parts)


def called(plan: Plan, site: SiteName) -> list[tuple[Method | None, ...]]:
    """The cells of a site; None for those of layers in steps that do not call the model."""
    absent = plan.skipped if site != "model" else ()
    return [(None,) * len(row) if step in absent else tuple(row) for step, row in enumerate(plan.sites[site].methods)]


def _lettered(plan: Plan, site: SiteName) -> list[list[Method | str]]:
    return [[method or _NOT_CALLED for method in row] for row in called(plan, site)]


def _rows(grid: Sequence[Sequence[Method | str]], color: bool) -> list[str]:
    """One line a layer, from one sequence of cells a step: methods, or what is drawn as it is."""
    return [f"{_layer_label(layer)} {_cells(cells, color)}" for layer, cells in enumerate(zip(*grid, strict=True))]


def _layer_label(layer: int) -> str:
    return f"{layer:>{_MARGIN - 1}}"


def _panels(steps: int, width: int) -> list[tuple[int, int]]:
    """Whole tens of steps per panel where they fit, so that ticks stand at the same places in each."""
    room = max(1, width - _MARGIN)
    size = room // _TICK * _TICK or room
    return [(start, min(start + size, steps)) for start in range(0, steps, size)]


def _cells(cells: Sequence[Method | str], color: bool) -> str:
    """Letters; in colour, one escape sequence per run of equal cells."""
    text = ""
    for cell, run in groupby(cells):
        length = len(list(run))
        text += _painted(cell, cell.letter * length, color) if isinstance(cell, Method) else cell * length
    return text


def _painted(method: Method, text: str, color: bool) -> str:
    if not color:
        return text
    red, green, blue = (int(COLORS[method][i : i + 2], 16) for i in (1, 3, 5))
    ink = "255;255;255" if 0.3 * red + 0.6 * green + 0.1 * blue < 128 else "0;0;0"
    return f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;{ink}m{text}\x1b[0m"


def _legend(plan: Plan, color: bool) -> list[str]:
    return [
        f"  {_painted(method, f' {method.letter} ', color)} {method:<9}  {share:5.1f} %  {MEANINGS[method]}"
        for method, share in ((method, shares(plan)[method]) for method in legend_order(plan))
    ]


def _bar(height: float, unicode: bool) -> str:
    if unicode:
        return _BARS[round(height * (len(_BARS) - 1))]
    return "#" if height > 0.95 else str(round(height * 10))


def _axis(plan: Plan, start: int, stop: int) -> list[str]:
    """Two lines under a panel: the number of every tenth step, and its timestep."""
    lines = {"step": "", "t": ""}
    for step in range(start, stop, _TICK):
        column = step - start
        labels = {"step": str(step), "t": timestep_label(plan.sampler.timesteps[step])}
        for name, label in labels.items():
            lines[name] = lines[name].ljust(column) + label
    return [f"{name:>{_MARGIN - 1}} {line}" for name, line in lines.items()]
