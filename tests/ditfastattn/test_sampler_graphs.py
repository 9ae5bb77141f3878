"""A sampler's steps, recorded and replayed: the same numbers and the same sampler afterwards."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from sampler_runs import SHAPE, Tape, model, plainly, replayed, run, same
from small_models import random_plan, sample, small_pipeline
from torch import Tensor

from ditfastattn import apply
from ditfastattn.host_state import part_of
from ditfastattn.sampler_graphs import SamplerGraphs

ELSEWHERE = torch.device("meta")
RECORDED: dict[str, Callable[[], Any]] = {
    "dpm": lambda: DPMSolverMultistepScheduler(),
    "dpm third order": lambda: DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True),
    "singlestep": lambda: DPMSolverSinglestepScheduler(),
    "ddim": lambda: DDIMScheduler(),
    "euler": lambda: EulerDiscreteScheduler(),
    "heun": lambda: HeunDiscreteScheduler(),
    "deis": lambda: DEISMultistepScheduler(),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(),
}
NOISY: dict[str, Callable[[], Any]] = {
    "ddpm": lambda: DDPMScheduler(),
    "sde": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_replayed_steps_are_the_samplers_own(name: str) -> None:
    scheduler, other = RECORDED[name](), RECORDED[name]()
    graphs = SamplerGraphs(scheduler, Tape)
    assert graphs.report() == []
    kept = []
    for seed in (0, 1, 2, 1):
        expected, after = run(other, plainly(other), seed)
        found, states = run(scheduler, replayed(scheduler, graphs), seed)
        kept.append((expected, found))
        for here, there in zip(states, after, strict=True):
            assert here.keys() == there.keys() and all(same(here[key], there[key]) for key in here)
    # compared at the end: what was returned is the caller's, whatever ran since
    assert all(same(expected, found) for expected, found in kept)
    assert graphs.count >= 6 and graphs.report() == [f"sampler          {graphs.count} of its steps captured"]


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_drawn_anew(name: str) -> None:
    scheduler, other = NOISY[name](), NOISY[name]()
    graphs = SamplerGraphs(scheduler, Tape)
    for seed in (0, 1, 2):
        generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
        expected, _ = run(other, plainly(other), seed, generator=generators[0])
        found, _ = run(scheduler, replayed(scheduler, graphs), seed, generator=generators[1])
        assert same(expected, found)
        torch.manual_seed(seed)
        expected, _ = run(other, plainly(other), seed)
        torch.manual_seed(seed)
        found, _ = run(scheduler, replayed(scheduler, graphs), seed)
        assert same(expected, found)
    assert graphs.count <= 2  # the last step of DDPM adds none


def test_another_host_state_is_not_replayed() -> None:
    scheduler, other = RECORDED["dpm"](), RECORDED["dpm"]()
    graphs = SamplerGraphs(scheduler, Tape)
    run(scheduler, replayed(scheduler, graphs), 0)
    for steps in (9, 7, 5, 7):  # the places are the same, the timesteps are not
        expected, _ = run(other, plainly(other), 3, steps)
        found, _ = run(scheduler, replayed(scheduler, graphs), 3, steps)
        assert same(expected, found)


def test_a_timestep_that_is_not_the_recorded_one_is_not_replayed() -> None:
    scheduler, other = RECORDED["ddim"](), RECORDED["ddim"]()
    graphs = SamplerGraphs(scheduler, Tape)
    run(scheduler, replayed(scheduler, graphs), 0)
    output, latents = torch.randn(SHAPE), torch.randn(SHAPE)
    other.set_timesteps(7)
    for timestep in (other.timesteps[2], other.timesteps[4], 123):
        expected = other.step(output, timestep, latents).prev_sample
        found = graphs.step(0, 2, scheduler.step, (output, timestep, latents), {}).prev_sample
        assert torch.equal(found, expected)


def test_only_the_samplers_own_code_is_recorded() -> None:
    class Counting(DPMSolverMultistepScheduler):  # type: ignore[misc]
        calls = 0

        def step(self, *args: Any, **kwargs: Any) -> Any:
            type(self).calls += 1
            return super().step(*args, **kwargs)

    scheduler = Counting()
    graphs = SamplerGraphs(scheduler, Tape)
    for _ in range(3):
        run(scheduler, replayed(scheduler, graphs), 0)
    assert Counting.calls == 21 and graphs.count == 0

    scheduler = RECORDED["dpm"]()
    convert, calls = scheduler.convert_model_output, []
    scheduler.convert_model_output = lambda *args, **kwargs: (calls.append(1), convert(*args, **kwargs))[1]
    graphs = SamplerGraphs(scheduler, Tape)
    for _ in range(3):
        run(scheduler, replayed(scheduler, graphs), 0)
    assert len(calls) == 21 and graphs.count == 0


def test_results_come_as_they_were_asked_for() -> None:
    scheduler = RECORDED["dpm"]()
    graphs = SamplerGraphs(scheduler, Tape)
    for seed in (0, 1):
        scheduler.set_timesteps(7)
        latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        for place, timestep in enumerate(scheduler.timesteps):
            args = (model(latents, timestep), timestep, latents)
            found = graphs.step(0, place, scheduler.step, args, {"return_dict": place % 2 == 0})
            latents = found.prev_sample if place % 2 == 0 else found[0]
            assert isinstance(found, tuple) == (place % 2 == 1)
    assert graphs.count == 7


@pytest.mark.parametrize("midway", [False, True])
def test_a_step_that_cannot_be_recorded_leaves_the_sampler_as_it_would_be(midway: bool) -> None:
    def refuses(work: Callable[[], object], pool: Any = None) -> Any:
        if midway:
            work()
        raise RuntimeError("operation not permitted when stream is capturing")

    scheduler, other = RECORDED["dpm"](), RECORDED["dpm"]()
    graphs = SamplerGraphs(scheduler, refuses)
    for seed in (0, 1):
        expected, _ = run(other, plainly(other), seed)
        found, _ = run(scheduler, replayed(scheduler, graphs), seed)
        assert same(expected, found)
    assert graphs.count == 0


def test_runs_that_came_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, other, recordings = RECORDED["dpm"](), RECORDED["dpm"](), []

    def record(work: Callable[[], object], pool: Any = None) -> Tape:
        recordings.append(Tape(work, pool))
        return recordings[-1]

    graphs = SamplerGraphs(scheduler, record)
    for entered_at in (0, 0, 1, 2, 3, 3):
        expected, _ = run(other, plainly(other), entered_at)
        begun = len(recordings)
        found, _ = run(scheduler, replayed(scheduler, graphs, entered_at), entered_at)
        assert same(expected, found)
        if entered_at == 0:
            nbytes = sum(one.nbytes for one in graphs._recordings())
            monkeypatch.setattr("ditfastattn.sampler_graphs.KEPT_BYTES", int(2.5 * nbytes))
    assert nbytes > 7 * 3 * 4 * 2 * 4 * 8 * 8  # latents, output and result of each step
    assert graphs.count == 14 and begun == len(recordings) == 28


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
def test_a_removed_session_holds_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes: weakref.WeakSet[Tape] = weakref.WeakSet()

    def record(work: Callable[[], object], pool: Any = None) -> Tape:
        tape = Tape(work, pool)
        tapes.add(tape)
        return tape

    monkeypatch.setattr("ditfastattn.session.on_gpu", lambda value: isinstance(value, Tensor))
    monkeypatch.setattr("ditfastattn.session.SamplerGraphs", lambda scheduler: SamplerGraphs(scheduler, record))
    pipe = small_pipeline()
    session = apply(pipe, random_plan(pipe), graphs=True)
    found = [sample(pipe) for _ in range(2)]
    assert torch.equal(*found) and len(tapes) > 2
    session.remove()
    gc.collect()
    assert len(tapes) == 0


def test_memory_that_a_capture_failed_in_takes_no_other_step() -> None:
    class Pooled(Tape):
        def __init__(self, work: Callable[[], object], pool: Any = None) -> None:
            recordings.append(pool)
            self._pool = object() if pool is None else pool
            if pool in broken:
                raise RuntimeError("already recording to mempool_id")
            if len(recordings) == 3:
                broken.append(self._pool)
                raise RuntimeError("operation not permitted when stream is capturing")
            super().__init__(work)

        def pool(self) -> Any:
            return self._pool

    recordings: list[Any] = []
    broken: list[Any] = []
    scheduler = RECORDED["dpm"]()
    graphs = SamplerGraphs(scheduler, Pooled)
    run(scheduler, replayed(scheduler, graphs), 0)
    assert len(broken) == 1 and graphs.count == 6


def test_what_is_written_to_inference_tensors_is_seen() -> None:
    def refuses_the_first(work: Callable[[], object], pool: Any = None) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return Tape(work, pool)

    calls: list[int] = []
    scheduler, other = PNDMScheduler(), PNDMScheduler()  # its Runge-Kutta steps add to a tensor of the step before
    graphs = SamplerGraphs(scheduler, refuses_the_first)
    with torch.inference_mode():
        for seed in (0, 1, 2):
            expected, _ = run(other, plainly(other), seed)
            found, _ = run(scheduler, replayed(scheduler, graphs), seed)
            assert same(expected, found)
    assert graphs.count > 0


def test_tensors_on_the_host_are_told_apart_by_their_numbers() -> None:
    sigmas = torch.linspace(1, 0, 5)
    part = part_of([sigmas, None, 3], ELSEWHERE, lambda tensor: False)
    assert part.fits([sigmas, None, 3]) and part.fits([sigmas.clone(), None, 3])
    assert not part.fits([sigmas, None, 4]) and not part.fits([sigmas, 0, 3]) and not part.fits([sigmas, None])
    assert not part.fits([sigmas.double(), None, 3])
    assert not part.fits([sigmas.to(ELSEWHERE), None, 3])  # as add_noise moves them
    sigmas[2] = 7
    assert not part.fits([sigmas, None, 3])
    with torch.inference_mode():
        sigmas = torch.linspace(1, 0, 5)
    part = part_of(sigmas, ELSEWHERE, lambda tensor: False)
    assert part.fits(sigmas) and part.fits(sigmas.clone())
    with torch.inference_mode():
        sigmas[2] = 7
    assert not part.fits(sigmas)
    with pytest.raises(RuntimeError, match="dict"):
        part_of({"sigma": 1.0}, ELSEWHERE, lambda tensor: False)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", ["dpm", "ddim", "heun", "ddpm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_a_gpu_images_are_those_of_the_samplers_own_steps(
    sampler: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = small_pipeline(sampler=sampler).to("cuda", dtype)
    plan = random_plan(pipe)

    def three(**kwargs: Any) -> list[Tensor]:
        with apply(pipe, plan, graphs=True) as session:
            torch.manual_seed(0)
            found = [sample(pipe, labels=labels) for labels in [(1, 2), (3, 4), (1, 2, 3), (1, 2)]]
            counts.append(session._sampler_graphs.count)
        return found

    counts: list[int] = []
    found = three()
    monkeypatch.setattr(
        SamplerGraphs, "step", lambda self, entered_at, place, original, args, kwargs: original(*args, **kwargs)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, three(), strict=True))
    assert counts[0] >= (0 if sampler == "ddpm" else 2 * (plan.steps - 2)) and counts[1] == 0
