"""Own timesteps, chosen from one run: the errors of leaps are the sampler's own, and the best subset is found."""

import itertools
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import full_plan, label_denoiser, small_pipeline

from calibration.recorded import Recording
from calibration.spacing import WIDER, Spacing, moved
from ditfastattn.samplers import make_sampler
from ditfastattn.sampling import Trajectory, label_condition, sample_latents
from plans import SamplerSpec

STEPS, SCALE, LABELS = 9, 4.0, (1, 2, 3)


def spacing(pipe: Any, steps: int = STEPS) -> Spacing:
    condition = label_condition(pipe.transformer, LABELS)
    return Spacing(Recording(pipe, condition, SCALE, full_plan(pipe, steps, SCALE).sampler, 0))


@pytest.fixture(scope="module")
def found() -> Spacing:
    return spacing(small_pipeline(layers=2))


def at(run: SamplerSpec, steps: list[int]) -> SamplerSpec:
    """The run at some of its steps only."""
    return run.model_copy(update={"timesteps": tuple(run.timesteps[step] for step in steps), "own_timesteps": True})


@pytest.mark.parametrize(("now", "to"), [(0, 2), (1, 3), (3, 5), (4, 8), (6, STEPS), (7, STEPS)])
def test_leaps_are_what_a_run_that_leaves_steps_out_does(found: Spacing, now: int, to: int) -> None:
    """Up to ``now`` a shortened run is the whole one, so its next step is the leap, bit for bit."""
    pipe = small_pipeline(layers=2)
    run = full_plan(pipe, STEPS, SCALE).sampler
    kept = [*range(now + 1), *range(to, STEPS)]
    trajectory = Trajectory(label_denoiser(pipe, LABELS, SCALE), pipe.scheduler, at(run, kept), 0, range(3))
    with torch.no_grad():
        for step in range(now + 1):
            trajectory.advance(step, trajectory.predict(step))
    assert torch.equal(found._recording.reached((now - 1 if now else None, now, to)), trajectory.latents.double())


def test_growth_is_what_runs_from_a_wrong_state_show(found: Spacing) -> None:
    """At the first probe: the shortened run itself goes on from the leap, but for what its sampler remembers."""
    growth = found._recording.growth
    assert growth.shape == (STEPS + 1,) and growth[STEPS] == 1 and (growth > 0).all()
    step = min(step for step in found._recording._kept.stands if step > 2)
    wrong, recorded = found._recording.reached((step - 3, step - 2, step)), found._recording
    run = recorded._kept.stands[step].fork()
    run.latents = wrong.float()
    with torch.no_grad():
        for later in range(step, STEPS):
            run.advance(later, run.predict(later))
    off, end = (a.double() - b for a, b in ((recorded.latents[step], wrong), (recorded.latents[-1], run.latents)))
    expected = (end.flatten(1).norm(dim=1) / off.flatten(1).norm(dim=1)).log().mean().exp()
    assert growth[step] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("count", "stride"), [(4, 1), (6, 1), (7, 1), (4, 2), (3, 3), (2, 3)])
def test_the_path_has_the_least_errors_of_all(found: Spacing, count: int, stride: int) -> None:
    def total(path: tuple[int, ...]) -> float:
        befores: list[int | None] = [None, *path[:-1]]
        return sum(found._error(leap) for leap in zip(befores, path, [*path[1:], STEPS], strict=True))

    longest = -(-STEPS // count) + max(WIDER, stride)
    allowed = [
        (0, *rest)
        for rest in itertools.combinations(range(stride, STEPS, stride), count - 1)
        if all(b - a <= longest for a, b in pairwise((0, *rest, STEPS)))
    ]
    assert total(tuple(found._path(count, stride))) == pytest.approx(min(map(total, allowed)), rel=1e-9)


def test_chosen_timesteps_are_runs(found: Spacing) -> None:
    times = full_plan(small_pipeline(layers=2), STEPS, SCALE).sampler.timesteps
    for count in range(2, STEPS):
        for own in found.chosen(count):
            assert len(own) == count and own[0] == times[0]
            assert all(before > after for before, after in pairwise(own))
    assert not found.chosen(1) and not found.chosen(STEPS)


def test_chosen_timesteps_end_nearer_than_the_samplers_own() -> None:
    pipe = small_pipeline(layers=2)
    run = full_plan(pipe, 12, SCALE).sampler
    denoiser = label_denoiser(pipe, LABELS, SCALE)

    def off(of: SamplerSpec | int) -> float:
        end = sample_latents(denoiser, pipe.scheduler, of, 5, range(3)).double()  # other noise than it was chosen on
        return float((end - sample_latents(denoiser, pipe.scheduler, run, 5, range(3)).double()).norm())

    own = [run.model_copy(update={"timesteps": times, "own_timesteps": True}) for times in spacing(pipe, 12).chosen(9)]
    assert min(map(off, own)) < off(9)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_samplers_that_cannot_have_none(name: str) -> None:
    """DDIM takes no timesteps; DDPM does, but adds noise, so that no leap of it is found again."""
    pipe = small_pipeline(layers=2)
    pipe.scheduler = make_sampler(name, pipe.scheduler.config)
    state = torch.random.get_rng_state()
    found = spacing(pipe)
    assert not found._recording.leaps and not found.chosen(4)
    assert torch.equal(torch.random.get_rng_state(), state)


@given(st.lists(st.integers(1, 999), min_size=1, max_size=30, unique=True), st.integers(0, 2**32))
def test_moves_keep_count_order_and_the_first(times: list[int], seed: int) -> None:
    own = tuple(float(time) for time in sorted(times, reverse=True))
    new = moved(own, random.Random(seed))
    assert len(new) == len(own) and new[0] == own[0] and new[-1] > 0
    assert all(before > after for before, after in pairwise(new)) and all(time.is_integer() for time in new)


def test_what_can_be_moved_is() -> None:
    """The one timestep that two leave free, and those of samplers whose run ends at 0 (Euler's)."""
    assert len({moved((999.0, 300.0), random.Random(seed))[1] for seed in range(50)}) > 10
    moves = {moved((999.0, 600.0, 300.0, 0.0), random.Random(seed)) for seed in range(50)}
    assert len(moves) > 10 and all(times[-1] >= 0 for times in moves)
