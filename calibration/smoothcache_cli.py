"""``python -m calibration smoothcache``: SmoothCache's schedule for a model, as a plan."""

import argparse
from collections.abc import Sequence

from calibration.arguments import Parser, add_run
from calibration.command import opened, plan_paths, settle_schedule
from calibration.errors import CalibrationError
from calibration.smoothcache import LONGEST, smoothcache_errors
from ditfastattn.ranks import ALONE
from plans import save
from plans.make import smoothcache
from plans.render import costline

EXAMPLES = """examples:
  python -m calibration smoothcache --threshold 0.1
  python -m calibration smoothcache --model demo-long --threshold 0.05 0.1 0.2 --output runs
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m calibration smoothcache",
        description="Measures, in one uncompressed run, how far the outputs of attention and of MLPs change over a few "
        "steps, and saves the plan that reuses each kind while its error stays within a threshold (SmoothCache, arXiv "
        "2411.10510).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--threshold", nargs="+", type=float, required=True, metavar="A", help="relative L1 error; one or more")
    add("--longest", type=int, default=LONGEST, metavar="K", help="steps over which anything is reused at most (3)")
    add_run(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Writes a plan for each threshold.

    Raises:
        CalibrationError: options that cannot be.
    """
    options = parser().parse_args(argv)
    settle_schedule(options)
    paths = plan_paths(options, [f"smoothcache-{value:g}" for value in options.threshold])
    for value in options.threshold:
        if not 0 <= value < float("inf"):
            raise CalibrationError(f"a threshold is a relative error from 0, got {value:g}")
    if options.longest < 1:
        raise CalibrationError(f"--longest {options.longest} reuses nothing; give at least 1")
    pipe, _, settings = opened(options, ALONE.device(options.device))
    plan, errors = smoothcache_errors(pipe, settings, options.longest)
    for site, rows in errors.items():
        adjacent = [error for error in rows[0] if error == error]
        print(f"{site}: error over one step {min(adjacent):.3f} to {max(adjacent):.3f}" if adjacent else site)
    for value, path in zip(options.threshold, paths, strict=True):
        made = smoothcache(plan, errors, value)
        save(made, path)
        print(f"wrote {path}\n{costline(made)}")
    return 0
