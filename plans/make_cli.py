"""``python -m plans make``: plans by rule, from the command line."""

from __future__ import annotations

import argparse
from typing import Any

from plans import make
from plans.errors import PlanError
from plans.model import MlpShape
from plans.render import costline
from plans.schema import Plan
from plans.store import load, save

LAYERS, HIDDEN = 10_000, 10_000_000  # the most MLPs, and channels in them, that --mlps takes

EXAMPLES = """examples:
  python -m plans make fora --from plan.json --interval 3 --out fora.json
  python -m plans make taylorseer --from plan.json --interval 4 --order 2 --out forecast.json
  python -m plans make pab --from plan.json --interval 2 --cross-interval 6 --out pab.json
  python -m plans make skip --from plan.json --interval 2 --order 1 --out half.json

The plan after --from says for which model, sampler, guidance and window; its cells do not matter.
"""


def add_make(command: argparse.ArgumentParser) -> None:
    """Adds the schedules to the parser of ``make``."""
    command.epilog, command.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    schedules = command.add_subparsers(dest="schedule", required=True, metavar="SCHEDULE")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        schedule = schedules.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        schedule.add_argument("--from", dest="source", required=True, metavar="PLAN", help="a plan for the same model")
        schedule.add_argument("--out", required=True, metavar="FILE", help="the plan to write")
        schedule.add_argument("--interval", type=int, required=True, help="compute every so many steps")
        return schedule

    def add_mlp(schedule: argparse.ArgumentParser) -> None:
        mlp = schedule.add_mutually_exclusive_group()
        mlp.add_argument("--attention-only", action="store_true", help="leave the MLPs alone")
        mlp.add_argument("--mlps", metavar="LAYERS,HIDDEN", help="their number and width (default: 4 x the model's)")

    add_mlp(add("fora", "attention and MLPs reused between computed steps (FORA)"))
    forecast = add("taylorseer", "attention and MLPs forecast between computed steps (after TaylorSeer)")
    forecast.add_argument("--order", type=int, default=2, help="of the forecast, 1 or 2 (default: 2)")
    add_mlp(forecast)
    pab = add("pab", "attention reused in the middle of the trajectory (pyramid attention broadcast)")
    pab.add_argument("--temporal-interval", type=int, help="of attention between frames (default: as --interval)")
    pab.add_argument("--cross-interval", type=int, help="of cross-attention, in models that have it (default: compute)")
    skip = add("skip", "the whole model left out between computed steps")
    skip.add_argument("--order", type=int, default=0, help="of the forecast of its output; 0 reuses it (default: 0)")


def run_make(options: argparse.Namespace) -> int:
    """Writes the plan that the options describe.

    Raises:
        PlanError: no such plan, or numbers that make none.
    """
    source = load(options.source)
    try:
        plan = _made(options, source)
    except ValueError as error:
        raise PlanError(str(error)) from None
    save(plan, options.out)
    print(f"wrote {options.out}: {plan.note}\n{costline(plan)}")
    return 0


def _made(options: argparse.Namespace, source: Plan) -> Plan:
    if options.schedule == "pab":
        return make.pab(source, options.interval, options.temporal_interval, options.cross_interval)
    if options.schedule == "skip":
        return make.skip(source, options.interval, options.order)
    mlp: dict[str, Any] = {"mlp": not options.attention_only, "shape": _shape(options.mlps)}
    if options.schedule == "fora":
        return make.fora(source, options.interval, **mlp)
    return make.taylorseer(source, options.interval, options.order, **mlp)


def _shape(text: str | None) -> MlpShape | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    # int() of thousands of digits raises.
    numbers = [int(part) for part in parts if part.isdecimal() and len(part) < 10]
    if len(numbers) != len(parts) or len(parts) != 2 or not all(map(_between_one_and, numbers, (LAYERS, HIDDEN))):
        raise PlanError(
            f"--mlps {text:.40} is not a number of MLPs from 1 to {LAYERS:,} and their width up to {HIDDEN:,}; write "
            "it like 28,4608"
        )
    return MlpShape(layers=numbers[0], hidden=numbers[1])


def _between_one_and(number: int, most: int) -> bool:
    return 1 <= number <= most
