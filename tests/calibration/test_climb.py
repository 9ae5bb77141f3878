"""Schedules searched on from: what errors add up to, and that a climb ends where no change is for the better."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_models import full_plan, small_pipeline

from calibration.calls import Calls, Schedule
from calibration.climb import Climb, _forecasts
from calibration.gaps import Gap, Gaps
from calibration.recorded import Recording
from ditfastattn.sampling import label_condition
from plans import Method
from plans.forecast import feasible
from plans.make import ORDERS

STEPS, SCALE, LABELS = 9, 4.0, (1, 2, 3)
FULL, SAME, LINE, CURVE = Method.FULL, *ORDERS


@pytest.fixture(scope="module")
def run() -> Recording:
    pipe: Any = small_pipeline(layers=2)
    condition = label_condition(pipe.transformer, LABELS)
    return Recording(pipe, condition, SCALE, full_plan(pipe, STEPS, SCALE).sampler, seed=0)


@pytest.mark.parametrize("leaps", [False, True])
@pytest.mark.parametrize("calls", [4, 5, 6])
def test_apart_the_errors_are_the_dynamic_programs(run: Recording, calls: int, leaps: bool) -> None:
    gaps = Gaps(run, (1, 2), 4, leaps)
    schedule = Calls(gaps).best(calls, STEPS - calls)
    assert schedule is not None and schedule.calls == calls
    climb = Climb(gaps)
    assert climb.error(climb.steps_of(schedule), 0.0) == pytest.approx(schedule.error)


def test_together_they_are_a_sum_of_vectors(run: Recording) -> None:
    """Against the tensors themselves: every gap's error carried to the end, added up in float64, image by image."""
    gaps = Gaps(run, (1, 2), 4, True)
    steps = (FULL, FULL, LINE, FULL, FULL, None, FULL, CURVE, FULL)
    found = list(Climb(gaps)._between(steps))
    assert found == [
        Gap(None, (0,), (), 0, 1),
        Gap(0, (0, 1), (2,), 1, 3),
        Gap(2, (0, 1, 3), (), 0, 4),
        Gap(3, (1, 3, 4), (), 0, 6),
        Gap(4, (3, 4, 6), (7,), 2, 8),
        Gap(7, (4, 6, 8), (), 0, 9),
    ]
    kept = torch.stack([*run.latents, *run.outputs]).double().flatten(2)  # (2 steps + 1, B, C h w)
    end = run.latents[-1].double().flatten(1).norm(dim=1)
    vectors = [torch.einsum("s,sbd->bd", torch.from_numpy(gaps.at_the_end(gap)), kept) for gap in found]
    *apart, summed = (float((off.norm(dim=1) / end).square().mean()) for off in (*vectors, torch.stack(vectors).sum(0)))
    for together in (0.0, 0.3, 1.0):
        wanted = (1 - together) * sum(apart) + together * summed
        assert Climb(gaps).error(steps, together) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    "steps",
    [
        (FULL, LINE, FULL, FULL, FULL, FULL, FULL, FULL, FULL),  # a line needs two outputs
        (FULL, FULL, LINE, FULL, None, FULL, FULL, FULL, FULL),  # a leap after a forecast
        (FULL, FULL, FULL, FULL, None, None, None, None, FULL),  # too long
        (FULL, FULL, FULL, FULL, FULL, FULL, FULL, FULL, LINE),  # the last step does not call the model
    ],
)
def test_what_no_schedule_may_have(run: Recording, steps: Any) -> None:
    assert Climb(Gaps(run, (1, 2), 4, True)).error(steps, 0.5) == math.inf


@pytest.mark.parametrize("leaps", [False, True])
@pytest.mark.parametrize("together", [0.0, 0.5, 0.8, 1.0])
def test_a_climb_ends_at_the_top(run: Recording, together: float, leaps: bool) -> None:
    gaps = Gaps(run, (1, 2), 4, leaps)
    climb = Climb(gaps)
    for calls in (4, 5, 6):
        begun = Calls(gaps).best(calls, STEPS - calls)
        assert begun is not None
        top = climb.top(begun, STEPS - calls, together)
        steps = climb.steps_of(top)
        assert top.calls == calls and top.column[0] is FULL and top.kept[0] == 0
        assert len(top.kept) - calls == _forecasts(steps) <= STEPS - calls
        assert leaps or len(top.kept) == STEPS
        assert all(len({steps[step] for step in gap.forecast}) <= 1 for gap in climb._between(steps))
        assert top.error == climb.error(steps, together) <= climb.error(climb.steps_of(begun), together)
        assert tuple(feasible(top.column, [run.run.timesteps[step] for step in top.kept])) == top.column
        for changed in climb._changed(steps, STEPS - calls):
            assert climb.error(changed, together) >= top.error * (1 - 1e-4)


def test_no_more_forecasts_than_are_allowed(run: Recording) -> None:
    gaps = Gaps(run, (1, 2), 4, True)
    begun = Calls(gaps).best(4, 2)
    assert begun is not None
    for allowed in (2, 3, STEPS):
        top = Climb(gaps).top(begun, allowed, 0.8)
        assert len(top.kept) - top.calls <= allowed


def test_a_worse_schedule_is_made_better(run: Recording) -> None:
    gaps = Gaps(run, (1, 2), 4, False)
    column = (FULL, FULL, LINE, LINE, LINE, FULL, FULL, FULL, FULL)
    climb = Climb(gaps)
    bad = Schedule(tuple(range(STEPS)), column, np.inf)
    assert climb.top(bad, STEPS, 0.8).error < 0.9 * climb.error(climb.steps_of(bad), 0.8)


def test_what_changes(run: Recording) -> None:
    """Steps that are at most three apart change places; forecasts change their order, and with leaps come and go."""
    gaps = Gaps(run, (1, 2), 9, True)
    steps = (FULL, FULL, FULL, LINE, LINE, FULL, FULL, FULL, None)
    changed = set(Climb(gaps)._changed(steps, 2))
    assert (FULL, FULL, FULL, LINE, FULL, FULL, FULL, LINE, None) in changed
    assert (FULL, LINE, FULL, FULL, LINE, FULL, FULL, FULL, None) in changed  # two apart
    assert (FULL, FULL, FULL, FULL, LINE, FULL, FULL, FULL, LINE) not in changed
    assert (FULL, FULL, FULL, CURVE, CURVE, FULL, FULL, FULL, None) in changed  # a gap has one order
    assert (FULL, FULL, FULL, None, LINE, FULL, FULL, FULL, None) in changed
    assert (FULL, FULL, FULL, LINE, LINE, FULL, FULL, FULL, LINE) not in changed  # a third forecast
    assert (FULL, FULL, FULL, LINE, LINE, FULL, FULL, FULL, LINE) in set(Climb(gaps)._changed(steps, 3))
    assert not any(None in one for one in Climb(Gaps(run, (1, 2), 9, False))._changed((*steps[:-1], FULL), 9))
    assert all(one[0] is FULL for one in changed)


def test_steps_are_left_out_where_that_is_better(run: Recording) -> None:
    kept = Calls(Gaps(run, (1, 2), 4, False)).best(5, STEPS - 5)
    assert kept is not None
    climb = Climb(Gaps(run, (1, 2), 4, True))
    top = climb.top(kept, STEPS - 5, 0.8)
    assert len(top.kept) < STEPS and top.error < climb.error(climb.steps_of(kept), 0.8)
