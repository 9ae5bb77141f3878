"""Gaps between model calls: their errors are those of the sampler's own steps, and the best schedule is found."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, LMSDiscreteScheduler
from diffusers.utils import logging
from small_models import TRAINING, full_plan, small_pipeline
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calibration.calls import Calls
from calibration.gaps import BEGIN, Gap, Gaps, State
from calibration.recorded import Recording
from ditfastattn.samplers import begin_run, make_sampler
from ditfastattn.sampling import label_condition
from plans import Method
from plans.forecast import fault, forecast_weights

STEPS, SCALE, LABELS = 7, 4.0, (1, 2, 3)
END = STEPS  # where a gap leads that ends the run


def recording(pipe: Any, steps: int = STEPS) -> Recording:
    return Recording(
        pipe, label_condition(pipe.transformer, LABELS), SCALE, full_plan(pipe, steps, SCALE).sampler, seed=0
    )


@pytest.fixture(scope="module")
def run() -> Recording:
    return recording(small_pipeline(layers=2))


def forecast(run: Recording, step: int, read: Sequence[int]) -> Tensor:
    """The guided output of a step, extrapolated from those of ``read``."""
    times = run.run.timesteps
    weights = forecast_weights(times[step], [times[one] for one in read])
    return torch.stack([weight * run.outputs[one] for weight, one in zip(weights, read, strict=True)]).sum(0)


def sampled(run: Recording, gap: Gap) -> Tensor:
    """What the scheduler itself makes of a gap that ends the run, begun in the run's own state."""
    first = gap.computed[-1] if gap.before is None else gap.before
    steps = list(dict.fromkeys([first, gap.computed[-1], *gap.forecast]))
    times = tuple(run.run.timesteps[step] for step in steps)
    scheduler = type(run.scheduler).from_config(run.scheduler.config)
    begin_run(scheduler, run.run.model_copy(update={"timesteps": times, "own_timesteps": True}))
    latents = run.latents[first]
    for step, timestep in zip(steps, scheduler.timesteps, strict=True):
        if step == gap.computed[-1]:
            latents = run.latents[step]
        output = run.outputs[step]
        if step in gap.forecast:
            output = forecast(run, step, gap.computed[-1 - gap.order :])
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents.double()


@pytest.mark.parametrize(
    "gap",
    [
        Gap(3, (3, 4), (), 0, END),  # a leap
        Gap(3, (2, 4), (5, 6), 1, END),  # the run's own steps, forecast
        Gap(1, (1, 2), (4,), 1, END),  # a leap, a forecast, a leap
        Gap(3, (0, 2, 4), (5, 6), 2, END),
        Gap(None, (0,), (), 0, END),
    ],
)
def test_errors_are_what_the_sampler_does(run: Recording, gap: Gap) -> None:
    """Of gaps that end the run, which nothing carries on."""
    end = run.latents[-1].double().flatten(1)
    off = sampled(run, gap).flatten(1) - end
    wanted = float((off.norm(dim=1) / end.norm(dim=1)).square().mean())
    assert Gaps(run, (1, 2), 5, True).errors([gap])[0] == pytest.approx(wanted, rel=1e-3)


def test_a_leap_in_the_middle_is_carried_to_the_end(run: Recording) -> None:
    now, to = 2, 4
    end = run.latents[-1].double().flatten(1)
    off = (run.reached((now - 1, now, to)) - run.latents[to].double()).flatten(1)
    wanted = float((off.norm(dim=1) / end.norm(dim=1)).square().mean()) * run.growth[to] ** 2
    found = Gaps(run, (), 5, True).errors([Gap(now - 1, (now,), (), 0, to)])[0]
    assert found == pytest.approx(wanted, rel=1e-3)


def test_what_the_sampler_remembers_of_a_forecast_counts(run: Recording) -> None:
    """The step after the next call looks back at the latents and the output before it."""
    gaps = Gaps(run, (1,), 5, True)
    gap = Gap(1, (1, 2), (3,), 1, 4)
    error = gaps.at_the_end(gap)
    outputs, before = error[STEPS + 1 :], error[: STEPS + 1]
    weights = run.weights(3, 4, 5)
    # the output that was recorded at the forecast step is missing from the sampler's memory, and so from its step
    assert outputs[3] == pytest.approx(-run.growth[5] * weights[3])
    assert before[4] == pytest.approx(-run.growth[4])
    assert weights[3] != 0


def test_the_sampler_is_found_again(run: Recording) -> None:
    assert run.replays and run.leaps
    for now in range(STEPS):
        weighed = run.weighed((now - 1 if now else None, now, now + 1))
        assert (weighed - run.latents[now + 1].double()).norm() <= 1e-5 * run.latents[now + 1].norm()


@pytest.mark.parametrize(("name", "replays", "leaps"), [("ddim", True, False), ("ddpm", False, False)])
def test_of_other_samplers_what_can_be(name: str, replays: bool, leaps: bool) -> None:
    pipe = small_pipeline(layers=2)
    pipe.scheduler = make_sampler(name, pipe.scheduler.config)
    state = torch.random.get_rng_state()
    found = recording(pipe)
    assert (found.replays, found.leaps) == (replays, leaps)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_the_latents_is_not_the_samplers(dtype: torch.dtype) -> None:
    pipe = small_pipeline(layers=2)
    pipe.transformer.to(dtype)
    found = recording(pipe)
    assert found.replays and found.leaps


def test_a_sampler_that_looks_far_back_is_not_replayed() -> None:
    """What the outputs further back add to one step is little here: a thousandth of the latents."""
    pipe = small_pipeline(layers=2)
    pipe.scheduler = LMSDiscreteScheduler(**TRAINING)
    assert not recording(pipe, 8).replays


def test_a_replay_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    pipe = small_pipeline(layers=2)
    pipe.scheduler = EulerDiscreteScheduler(**TRAINING)
    found = recording(pipe)
    logging.enable_propagation()
    try:
        assert found.replays and found.leaps
    finally:
        logging.disable_propagation()
    assert not caplog.records


def schedules(gaps: Gaps) -> list[list[Gap]]:
    """All ways through a run."""

    def after(state: State) -> list[list[Gap]]:
        found: list[list[Gap]] = []
        for gap in gaps.after(state):
            reached = gaps.reached(gap)
            found += [[gap]] if reached is None else [[gap, *rest] for rest in after(reached)]
        return found

    return after(BEGIN)


@pytest.mark.parametrize("leaps", [True, False])
def test_the_best_of_all_schedules(run: Recording, leaps: bool) -> None:
    gaps = Gaps(run, (1,), 3, leaps)
    ways = schedules(gaps)
    errors = [float(gaps.errors(way).sum()) for way in ways]
    assert len(ways) == len({tuple(way) for way in ways}) > 12
    best = Calls(gaps)
    for calls, forecasts in itertools.product(range(1, STEPS + 1), range(STEPS)):
        possible = [
            error
            for way, error in zip(ways, errors, strict=True)
            if len(way) == calls and sum(len(gap.forecast) for gap in way) <= forecasts
        ]
        found = best.best(calls, forecasts)
        assert (found is None) == (not possible)
        if found is not None:
            assert found.error == pytest.approx(min(possible), abs=1e-12)
            assert found.column.count(Method.FULL) == calls
            assert len(found.kept) == len(found.column) <= calls + forecasts
            assert leaps or found.kept == tuple(range(STEPS))


def test_every_schedule_can_be_a_plan(run: Recording) -> None:
    gaps = Gaps(run, (1, 2), 4, True)
    times, draw = run.run.timesteps, random.Random(0)
    for way in draw.sample(schedules(gaps), 100):
        computed: list[float] = []
        for gap in way:
            computed.append(times[gap.computed[-1]])
            for _ in gap.forecast:
                assert fault((Method.AST, Method.AST_1, Method.AST_2)[gap.order], computed) is None
        kept = [step for gap in way for step in (gap.computed[-1], *gap.forecast)]
        assert kept == sorted(set(kept))


def test_errors_of_many_gaps_are_those_of_each(run: Recording) -> None:
    gaps = Gaps(run, (1,), 4, True)
    some = [gap for way in schedules(gaps)[:5] for gap in way]
    assert np.allclose(gaps.errors(some), [gaps.errors([gap])[0] for gap in some], rtol=1e-9, atol=1e-15)


def test_products_are_made_image_by_image(run: Recording) -> None:
    """In float64, all images of a large model's run at once would take more memory than there may be."""
    with Largest() as largest:
        Gaps(run, (1,), 4, True).errors([Gap(None, (0,), (), 0, END)])
    assert largest.numel == (2 * STEPS + 1) * run.latents[0][0].numel()


class Largest(TorchFunctionMode):
    """Of all tensors that are made."""

    numel = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.numel = max(self.numel, found.numel())
        return found


def test_no_leap_follows_a_forecast(run: Recording) -> None:
    """What the sampler remembers of a forecast is counted in its next step alone, if that is the run's own."""
    gaps = Gaps(run, (1,), 4, True)
    forecast_before, computed_before = State(2, (1, 3)), State(1, (1, 3))
    assert {(*gap.forecast, gap.to)[0] for gap in gaps.after(forecast_before)} == {4}
    assert {(*gap.forecast, gap.to)[0] for gap in gaps.after(computed_before)} == {4, 5, 6, 7}


@pytest.mark.parametrize("leaps", [True, False])
def test_the_last_step_calls_the_model(run: Recording, leaps: bool) -> None:
    """It adds detail. Steps at the end may be left out: the last that is kept calls it."""
    gaps = Gaps(run, (1, 2), 4, leaps)
    assert all(not way[-1].forecast and way[-1].to == END for way in schedules(gaps))
    assert any(way[-1].computed[-1] < END - 1 for way in schedules(gaps)) == leaps


def test_without_forecasts_all_leaps_are_allowed(run: Recording) -> None:
    ways = {tuple(gap.computed[-1] for gap in way) for way in schedules(Gaps(run, (), STEPS, True))}
    assert ways == {(0, *rest) for count in range(STEPS) for rest in itertools.combinations(range(1, STEPS), count)}
