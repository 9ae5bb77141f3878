"""The command line of plans.

Exit codes: 0, 1 where `diff` or `check --against` finds a difference, 2 for an error.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from plans.compare import plan_differences, setting_differences
from plans.errors import PlanError
from plans.macs import (
    CONVENTIONS,
    PlanMacs,
    knows_mlps,
    part_macs,
    plan_macs,
    shares,
    site_macs,
    total_macs,
)
from plans.make_cli import add_make, run_make
from plans.model import SiteName
from plans.render import called, changes, costline, headline, legend_order, noteline, siteline, terminal
from plans.schema import Plan
from plans.store import load, reseal, shipped

_NOT_CALLED = "not called"  # layers in steps that are skipped
_EXAMPLES = """examples:
  python -m plans list                              the plans that ship, by their names
  python -m plans show plan.json                    the plan as a picture in the terminal
  python -m plans show plan.json --out plan.png     the same as PNG or SVG
  python -m plans check plan.json                   is the file whole and valid?
  python -m plans check plan.json --against b.json  and made for the same model, sampler and guidance?
  python -m plans stats plan.json --json            shares of the methods, MACs per step
  python -m plans diff before.json after.json       what changed; exit code 1 if anything did
  python -m plans make fora --from plan.json --interval 3 --out fora.json      a plan by rule
  python -m plans seal plan.json                    accept a file that was edited by hand
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an error is one sentence on stderr."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show is no error
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code
    except PlanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, say `head`, has what it wanted. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m plans",
        description="Plans say which method each layer uses at each sampler step.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(command=function)
        return command

    add("list", _list, "name the plans that ship")
    show = add("show", _show, "draw a plan, layers x steps")
    show.add_argument("file")
    show.add_argument("--out", metavar="FILE", help="a .png or .svg to draw into instead of the terminal")
    check = add("check", _check, "check that a plan file is whole and valid")
    check.add_argument("file")
    check.add_argument("--against", metavar="OTHER", help="a plan whose model, sampler and guidance it must share")
    stats = add("stats", _stats, "print shares of the methods and attention MACs")
    stats.add_argument("file")
    stats.add_argument("--json", action="store_true", help="as JSON, for other programs")
    diff = add("diff", _diff, "compare two plans; exit code 1 if they differ")
    diff.add_argument("before")
    diff.add_argument("after")
    add_make(add("make", run_make, "write a plan by rule: FORA, TaylorSeer, PAB, skipped steps"))
    seal = add("seal", _seal, "check a plan file edited by hand and write it back with a fresh digest")
    seal.add_argument("file")
    return parser


def _list(_: argparse.Namespace) -> int:
    """Steps and model calls of a run; a file that cannot be read does not hide the others."""
    code = 0
    print(f"{'name':<32}{'steps':>6}{'calls':>6}  note")
    for file in shipped():
        try:
            plan = load(file)
        except PlanError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        origin = noteline(plan) or costline(plan).partition(";")[0]
        print(f"{file.stem:<32}{plan.steps:>6}{plan.calls:>6}  {origin}")
    return code


def _show(arguments: argparse.Namespace) -> int:
    plan = load(arguments.file)
    if arguments.out is None:
        print(terminal(plan, **_terminal_settings(sys.stdout)))
        return 0
    from plans.figure import picture

    picture(plan, arguments.out)
    print(f"wrote {arguments.out}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    plan = load(arguments.file)
    if arguments.against is not None:
        other = load(arguments.against)
        found = setting_differences(plan, other, ours="the plan", theirs="the other")
        if found:
            print(f"{arguments.file} was made for other settings than {arguments.against}:")
            print("\n".join(f"  {difference}" for difference in found))
            return 1
    print(f"{arguments.file} is a valid plan: {headline(plan)}")
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    plan = load(arguments.file)
    if arguments.json:
        print(json.dumps(_statistics(plan), indent=2))
        return 0
    print(headline(plan))
    print(costline(plan))
    if plan.note:
        print(noteline(plan))
    several = len(plan.sites) > 1
    for site in plan.sites if several else ():
        print(siteline(plan, site))
    _print_shares(plan)
    title = f"attention MACs per {'image row' if plan.model.temporal is None else 'video'}"
    print(f"\n{title:<30}   module        core")
    both = [plan_macs(plan, convention) for convention in CONVENTIONS]
    rows: list[tuple[str, list[str]]] = [
        ("all FULL, G", [f"{macs.full / 1e9:.2f}" for macs in both]),
        ("this plan, G", [f"{macs.total / 1e9:.2f}" for macs in both]),
        ("this plan, % of all FULL", [f"{macs.percent:.2f}" for macs in both]),
        ("storing residuals, %", [f"{macs.store_percent:.2f}" for macs in both]),
    ]
    for name, cells in rows:
        print(f"{name:<26}" + "".join(f"{cell:>12}" for cell in cells))
    module, core = both
    columns = {
        "module": module.step_percents,
        "core": core.step_percents,
        "store": tuple(100 * store / module.full_step for store in module.stores),
    }
    if knows_mlps(plan):
        total = total_macs(plan)
        print(f"\nattention, projections counted{', cross-attention' * ('cross' in plan.sites)}, and MLPs")
        print(f"{'all FULL, G':<26}{total.full / 1e9:>12.2f}")
        print(f"{'this plan, G':<26}{total.total / 1e9:>12.2f}")
        print(f"{'this plan, % of all FULL':<26}{total.percent:>12.2f}")
        columns["with MLPs"] = total.step_percents
    elif "cross" in plan.sites:
        columns["cross"] = part_macs(plan, "cross").step_percents
    print("\nstep  timestep" + "".join(f"{name + ' %':>12}" for name in columns))
    for step, timestep in enumerate(plan.sampler.timesteps):
        percents = [column[step] for column in columns.values()]
        print(f"{step:>4}  {timestep:>8.6g}" + "".join(f"{percent:12.1f}" for percent in percents))
    return 0


def _print_shares(plan: Plan) -> None:
    """Cells of each method, of all sites and of each if there are several."""
    columns = {"cells": shares(plan)}
    if len(plan.sites) > 1:
        columns |= {site: shares(plan, (site,)) for site in plan.sites}
    print("\nmethod    " + "".join(f"{name + ' %':>11}" for name in columns))
    for method in legend_order(plan):
        print(f"{method:<10}" + "".join(f"{share[method]:11.1f}" for share in columns.values()))


def _diff(arguments: argparse.Namespace) -> int:
    before, after = load(arguments.before), load(arguments.after)
    found = plan_differences(before, after)
    if before == after:
        print("the plans are equal")
        return 0
    print("\n".join(found))
    for site in [name for name in before.sites if name in after.sites]:
        old_grid, new_grid = called(before, site), called(after, site)
        shapes = {(len(grid), len(grid[0])) for grid in (old_grid, new_grid)}
        if len(shapes) == 1 and old_grid != new_grid:
            print("\n" + changes(before, after, site, **_picture_settings(sys.stdout)))
            _print_moves(before, after, site)
    for convention in CONVENTIONS:
        old, new = plan_macs(before, convention).percent, plan_macs(after, convention).percent
        print(f"attention MACs ({convention}): {old:.2f} % -> {new:.2f} % of full ({new - old:+.2f})")
    if knows_mlps(before) and knows_mlps(after):
        if before.model.cross is None and after.model.cross is not None:  # a plan without the site computes it
            before = before.with_cross(after.model.cross)
        elif before.model.cross is not None and after.model.cross is None:
            after = after.with_cross(before.model.cross)
        old, new = total_macs(before).percent, total_macs(after).percent
        cross = ", cross-attention" * ("cross" in before.sites)
        print(f"attention{cross} and MLP MACs: {old:.2f} % -> {new:.2f} % of full ({new - old:+.2f})")
    return 1


def _print_moves(before: Plan, after: Plan, site: SiteName) -> None:
    moves: dict[tuple[str, str], int] = {}
    for old_row, new_row in zip(called(before, site), called(after, site), strict=True):
        for move in zip(old_row, new_row, strict=True):
            if move[0] is not move[1]:
                names = (str(move[0] or _NOT_CALLED), str(move[1] or _NOT_CALLED))
                moves[names] = moves.get(names, 0) + 1
    for (old, new), count in sorted(moves.items(), key=lambda item: (-item[1], item[0])):
        print(f"{count:>6}  {old} -> {new}")
    print()


def _seal(arguments: argparse.Namespace) -> int:
    plan, changed = reseal(arguments.file)
    print(f"{'sealed' if changed else 'already sealed:'} {arguments.file}: {headline(plan)}")
    return 0


def _statistics(plan: Plan) -> dict[str, Any]:
    result: dict[str, Any] = {
        "layers": plan.layers,
        "steps": plan.steps,
        "window": [plan.window.left, plan.window.right],
        "token_order": plan.token_order,
        "shares_percent": {str(method): share for method, share in shares(plan).items()},
    }
    result |= {convention: _costs(plan_macs(plan, convention)) for convention in CONVENTIONS}
    if knows_mlps(plan):
        result["total"] = _costs(total_macs(plan))
    result["sites"] = {site: _site_statistics(plan, site) for site in plan.sites}
    return result


def _site_statistics(plan: Plan, site: SiteName) -> dict[str, Any]:
    shape, window = plan.model.shape(site), plan.window_of(site)
    result: dict[str, Any] = {"layers": shape.layers, "tokens": shape.tokens, "rows": shape.rows}
    if site in plan.attention_sites:
        result["window"] = [window.left, window.right]
    result["shares_percent"] = {str(method): share for method, share in shares(plan, (site,)).items()}
    if site in plan.attention_sites:
        result |= {convention: _costs(site_macs(plan, site, convention)) for convention in CONVENTIONS}
    elif site != "model":
        result["module"] = _costs(part_macs(plan, site))
    return result


def _costs(macs: PlanMacs) -> dict[str, Any]:
    return {
        "full_macs": macs.full,
        "plan_macs": macs.total,
        "percent": macs.percent,
        "residual_store_macs": macs.residual_store,
        "residual_store_percent": macs.store_percent,
        "step_percents": list(macs.step_percents),
    }


def _picture_settings(stream: TextIO) -> dict[str, Any]:
    """Width and colour for this stream: colours on a terminal only, and never under NO_COLOR (no-color.org)."""
    color = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return {"width": shutil.get_terminal_size((100, 24)).columns, "color": color}


def _terminal_settings(stream: TextIO) -> dict[str, Any]:
    unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return _picture_settings(stream) | {"unicode": unicode}
