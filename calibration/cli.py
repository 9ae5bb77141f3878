"""The command line of ``python -m calibration``: what each command needs is imported when its options are known."""

import sys
from collections.abc import Sequence

from calibration.arguments import advise_parser, calibrate_parser, explain_parser, smoothcache_parser
from calibration.memory import keep_freed_memory
from ditfastattn.console import run
from ditfastattn.ranks import start


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()

    def command() -> int:
        first, rest = (arguments or [""])[0], arguments[1:]
        if first == "explain":
            options = explain_parser().parse_args(rest)
            from calibration.explain_cli import explain

            return explain(options)
        if first == "smoothcache":
            options = smoothcache_parser().parse_args(rest)
            from calibration.smoothcache_cli import write_plans

            return write_plans(options)
        with start() as ranks:
            advised = first == "advise"
            options = advise_parser().parse_args(rest) if advised else calibrate_parser().parse_args(arguments)
            from calibration.calibrate_cli import write_calibrated

            try:
                return write_calibrated(options, arguments, ranks)
            except KeyboardInterrupt:
                timed = options.speedup or options.latency_ms
                again = "a search by time begins anew" if timed else "the same command with --resume goes on from here"
                raise KeyboardInterrupt(f"interrupted; {again}") from None

    return run(command)
