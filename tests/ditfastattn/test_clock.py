import pytest

from ditfastattn.clock import StepClock
from ditfastattn.errors import StepError

TIMES = (900.0, 700.0, 500.0, 300.0)


def test_steps_follow_the_timesteps_run_after_run() -> None:
    clock = StepClock(TIMES)
    for _ in range(2):
        assert [clock.tick(t) for t in TIMES] == [(0, True), (1, False), (2, False), (3, False)]


def test_a_run_after_an_aborted_one_begins_at_step_0() -> None:
    clock = StepClock(TIMES)
    clock.tick(900), clock.tick(700)
    assert clock.tick(900) == (0, True)
    assert clock.tick(700) == (1, False)


def test_foreign_timestep() -> None:
    with pytest.raises(StepError, match="timestep 899 is not one of the plan's 4"):
        StepClock(TIMES).tick(899)


def test_skipping_repeating_and_going_back_are_refused() -> None:
    for second, words in ((500.0, "does not follow step 0"), (900.0, None)):
        clock = StepClock(TIMES)
        clock.tick(900)
        if words is None:
            assert clock.tick(second) == (0, True)  # an aborted run and a new one look like this
        else:
            with pytest.raises(StepError, match=words):
                clock.tick(second)
    clock = StepClock(TIMES)
    clock.tick(900), clock.tick(700)
    with pytest.raises(StepError, match="called twice"):
        clock.tick(700)


def test_starting_in_the_middle_must_be_announced() -> None:
    clock = StepClock(TIMES)
    with pytest.raises(StepError, match="expect_new_run"):
        clock.tick(500)
    clock.expect_new_run()
    assert [clock.tick(t) for t in TIMES[2:]] == [(2, True), (3, False)]


def test_two_calls_at_one_timestep_have_two_entries() -> None:
    clock = StepClock((900.0, 700.0, 700.0, 500.0, 500.0))
    assert [clock.tick(t)[0] for t in (900.0, 700.0, 700.0, 500.0, 500.0)] == [0, 1, 2, 3, 4]
    assert clock.tick(900.0) == (0, True)


def test_after_a_failed_call_only_a_new_run_follows() -> None:
    clock = StepClock(TIMES)
    clock.tick(900)
    clock.forget()
    with pytest.raises(StepError, match="cannot begin a run"):
        clock.tick(700)


def test_a_plan_that_begins_with_two_equal_timesteps_needs_announced_runs() -> None:
    times = (999.0, 999.0, 500.0)
    clock = StepClock(times)
    clock.tick(999)
    with pytest.raises(StepError, match="begins the plan twice"):
        clock.tick(999)
    clock.expect_new_run()
    assert [clock.tick(t) for t in times] == [(0, True), (1, False), (2, False)]


def test_of_two_equal_timesteps_in_the_middle_a_run_begins_at_the_samplers_or_the_second() -> None:
    clock = StepClock((900.0, 700.0, 700.0, 500.0))
    clock.expect_new_run()
    assert clock.tick(700.0) == (2, True)
    clock.expect_new_run()
    assert clock.tick(700.0, begin_index=1) == (1, True)
