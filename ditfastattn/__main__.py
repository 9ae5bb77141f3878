"""``python -m ditfastattn``: plans for another run of the same model."""

import argparse
import sys
from collections.abc import Sequence

from ditfastattn.console import Parser, run
from ditfastattn.schedules import USUAL_STEPS
from plans import Plan, load, save
from plans.render import costline, headline


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for what the user can mend."""

    def command() -> int:
        options = _parser().parse_args(argv)
        plan = load(options.source)
        made: Plan = options.make(plan, options)
        save(made, options.out)
        print(f"wrote {options.out}: {headline(made)}")
        if options.make is _resampled:
            print(f"{costline(made)}\nwhere it came from: {costline(plan)}")
            print("nothing was calibrated there; what it loses: python -m eval resampled, or compare its images")
        return 0

    return run(command)


def _parser() -> Parser:
    parser = Parser(prog="python -m ditfastattn", description="Plans for another run of the same model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str) -> Parser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("--from", dest="source", required=True, metavar="PLAN", help="a plan for the same model")
        command.add_argument("--out", required=True, metavar="FILE", help="the plan to write")
        return command

    fewer = add("fewer-steps", "a plan over fewer steps of another plan's sampler, all FULL")
    fewer.add_argument("--steps", type=int, required=True, help="inference steps of the new plan")
    fewer.set_defaults(make=_over_fewer_steps)
    other = add("resample", "a plan's cells for other steps, by nearest timestep, another guidance or size")
    other.add_argument("--steps", type=int, help="inference steps of the new plan (default: the plan's)")
    other.add_argument("--sampler", help=f"{', '.join(USUAL_STEPS)} (default: the plan's)")
    other.add_argument("--guidance", type=float, metavar="SCALE", help="1 is none (default: the plan's)")
    other.add_argument("--tokens", type=int, help="of an image or frame: (pixels / (patch x VAE's factor)) squared")
    other.add_argument("--frames", type=int, help="of a video, as the model counts them")
    other.set_defaults(make=_resampled)
    return parser


def _over_fewer_steps(plan: Plan, options: argparse.Namespace) -> Plan:
    from ditfastattn.fewer import fewer_steps  # diffusers takes seconds, for which --help need not wait

    return fewer_steps(plan, options.steps)


def _resampled(plan: Plan, options: argparse.Namespace) -> Plan:
    from ditfastattn.resample import resample

    return resample(
        plan, steps=options.steps, sampler=options.sampler, guidance=options.guidance, tokens=options.tokens,
        frames=options.frames,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
