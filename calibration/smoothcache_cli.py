"""``python -m calibration smoothcache``: SmoothCache's schedule for a model, as a plan."""

import argparse

from calibration.command import opened, plan_paths, settle_schedule
from calibration.errors import CalibrationError
from calibration.smoothcache import LONGEST, smoothcache_errors
from ditfastattn.ranks import ALONE
from plans import save
from plans.make import smoothcache
from plans.render import costline


def write_plans(options: argparse.Namespace) -> int:
    """A plan for each threshold.

    Raises:
        CalibrationError: options that cannot be.
    """
    settle_schedule(options)
    paths = plan_paths(options, [f"smoothcache-{value:g}" for value in options.threshold])
    for value in options.threshold:
        if not 0 <= value < float("inf"):
            raise CalibrationError(f"a threshold is a relative error from 0, got {value:g}")
    longest = LONGEST if options.longest is None else options.longest
    if longest < 1:
        raise CalibrationError(f"--longest {longest} reuses nothing; give at least 1")
    pipe, _, settings = opened(options, ALONE.device(options.device))
    plan, errors = smoothcache_errors(pipe, settings, longest)
    for site, rows in errors.items():
        adjacent = [error for error in rows[0] if error == error]
        print(f"{site}: error over one step {min(adjacent):.3f} to {max(adjacent):.3f}" if adjacent else site)
    for value, path in zip(options.threshold, paths, strict=True):
        made = smoothcache(plan, errors, value)
        save(made, path)
        print(f"wrote {path}\n{costline(made)}")
    return 0
