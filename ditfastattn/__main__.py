"""``python -m ditfastattn fewer-steps``: the plan of fewer steps that compresses nothing."""

import argparse
import sys
from collections.abc import Sequence

from ditfastattn.console import run
from ditfastattn.fewer import fewer_steps
from plans import load, save
from plans.render import headline


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m ditfastattn", description="Make a plan from another.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fewer = commands.add_parser("fewer-steps", help="a plan over fewer steps of another plan's sampler, all FULL")
    fewer.add_argument("--from", dest="source", required=True, metavar="PLAN", help="a plan for the same model")
    fewer.add_argument("--steps", type=int, required=True, help="inference steps of the new plan")
    fewer.add_argument("--out", required=True, metavar="FILE", help="the plan to write")
    options = parser.parse_args(argv)

    def command() -> int:
        plan = fewer_steps(load(options.source), options.steps)
        save(plan, options.out)
        print(f"wrote {options.out}: {headline(plan)}")
        return 0

    return run(command)


if __name__ == "__main__":
    sys.exit(main())
