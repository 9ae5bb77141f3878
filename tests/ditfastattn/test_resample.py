"""Plans resampled for another run, followed by a small pipeline, and the command that writes them."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from reused_outputs import TIMES, expected_outputs, mixed_plan, subject
from small_models import TRAINING, full_plan, random_plan, sample, small_pipeline

import plans
from ditfastattn import apply
from ditfastattn.__main__ import main
from ditfastattn.errors import LoadError
from ditfastattn.resample import resample
from ditfastattn.samplers import make_sampler, sampler_spec
from plans import GuidanceSpec, Method, ModelSpec, SamplerSpec, TemporalShape, Window
from plans.resample import nearest_steps, resampled


@pytest.mark.parametrize("sampler", [None, "ddim", "heun"])
def test_a_session_does_what_the_nearest_steps_did(sampler: str | None) -> None:
    pipe = small_pipeline()
    source = random_plan(pipe)
    plan = resample(source, steps=5, sampler=sampler)
    if sampler is not None:
        pipe.scheduler = make_sampler(sampler, TRAINING)
    by_hand = full_plan(pipe, 5)
    assert (plan.model, plan.sampler, plan.guidance) == (by_hand.model, by_hand.sampler, by_hand.guidance)
    old = source.sampler.timesteps
    rows = [source.methods[min(range(8), key=lambda step: abs(old[step] - time))] for time in plan.sampler.timesteps]
    by_hand = by_hand.with_methods([[Method.FULL] * 4, *rows[1:]])
    with apply(pipe, by_hand):
        expected = sample(pipe, steps=5)
    with apply(pipe, plan):
        found = sample(pipe, steps=5)
    assert torch.equal(found, expected) and not torch.equal(found, sample(pipe, steps=5))


def test_every_site_against_the_models_own_modules() -> None:
    tested = subject("dit")
    source = mixed_plan(tested.model, 0)
    between = [(a + b) / 2 for a, b in pairwise(TIMES[1:])]
    first = SamplerSpec(class_name="ByHand", settings={}, timesteps=(TIMES[0], *between, TIMES[-1] / 2))
    there = resampled(source, first)
    back = resampled(there, source.sampler)  # other cells than the source's, at timesteps that the model is called at
    assert nearest_steps(first.timesteps, source.sampler.timesteps) != tuple(range(source.steps))
    assert set(back.sites) == {"attn", "mlp", "model"}
    expected = expected_outputs(tested, back)
    with torch.no_grad(), apply(tested.model, back):
        found = [tested.call(timestep) for timestep in TIMES]
    assert all(bool((a - b).norm() < 1e-10 * b.norm()) for a, b in zip(found, expected, strict=True))


def test_another_guidance_scale_and_none() -> None:
    pipe = small_pipeline()
    source = random_plan(pipe)
    for scale in (2.0, 1.0):
        with apply(pipe, resample(source, guidance=scale)) as session:
            sample(pipe, guidance_scale=scale)
        assert session.summary().methods[Method.WA_RS] > 0
    assert resample(source, guidance=1).guidance == GuidanceSpec(scale=1.0, layout="none")
    with pytest.raises(LoadError, match="the plan has no guidance, so it does not say which half"):
        resample(random_plan(pipe, guidance_scale=1.0), guidance=4)


def test_sizes() -> None:
    plan = random_plan(small_pipeline())
    large = resample(plan, tokens=64)
    assert large.model.tokens == 64 and large.window == Window(left=8, right=8)
    video = ModelSpec(**plan.model.model_dump() | {"temporal": TemporalShape(layers=4, frames=8)})
    source = plans.Plan.full(model=video, sampler=plan.sampler, guidance=plan.guidance)
    assert resample(source, frames=16).window_of("temporal") == Window(left=2, right=2)
    with pytest.raises(LoadError, match="no attention between frames; leave frames out"):
        resample(plan, frames=16)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = small_pipeline()
    plan, out = random_plan(pipe), tmp_path / "other.json"
    plans.save(plan, tmp_path / "plan.json")
    arguments = ["resample", "--from", str(tmp_path / "plan.json"), "--out", str(out)]
    assert main([*arguments, "--steps", "5", "--guidance", "3"]) == 0
    found = plans.load(out)
    assert found == resample(plan, steps=5, guidance=3.0) and found.sampler == sampler_spec(pipe.scheduler, 5)
    assert found.note.startswith("resampled by timestep from a plan of 8 steps")
    printed = capsys.readouterr().out
    assert "5 steps" in printed and "nothing was calibrated there" in printed
    out.unlink()
    for given, expected in {
        "": "nothing changes, so this is the plan itself; give steps",
        "--steps 0": "cannot take 0 steps; give 1 to 1000",
        "--sampler euler": "there is no sampler 'euler'; choose one of dpm",
        "--guidance 0.5": "scale is 0.5, which is wrong",
        "--tokens 0": "tokens is 0, which is wrong",
        "--frames 4": "no attention between frames",
    }.items():
        assert main([*arguments, *given.split()]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.startswith("error: ") and error.count("\n") == 1
    assert not out.exists()
