"""Plans of fewer steps, made from another plan's sampler."""

from pathlib import Path

import pytest
from small_models import TRAINING, full_plan, random_plan, sample, small_pipeline

import plans
from ditfastattn import apply
from ditfastattn.__main__ import main
from ditfastattn.errors import LoadError
from ditfastattn.fewer import fewer_steps
from ditfastattn.samplers import SAMPLERS, make_sampler, sampler_spec
from plans import MlpShape


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_timesteps_are_the_samplers_own(sampler: str) -> None:
    pipe = small_pipeline(sampler="ddim")
    pipe.scheduler = make_sampler(sampler, TRAINING)
    plan = random_plan(pipe).with_mlp(MlpShape(layers=4, hidden=192))
    fewer = fewer_steps(plan, 5)
    assert fewer.sampler == sampler_spec(pipe.scheduler, 5)
    assert fewer == full_plan(pipe, 5).model_copy(update={"note": "nothing compressed: 5 steps instead of 8"})


def test_it_samples_as_the_model_does_with_so_many_steps() -> None:
    pipe = small_pipeline()
    plan = fewer_steps(full_plan(pipe), 4)
    expected = sample(pipe, steps=4)
    with apply(pipe, plan):
        assert (sample(pipe, steps=4) == expected).all()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = full_plan(small_pipeline()), tmp_path / "fewer.json"
    plans.save(plan, tmp_path / "plan.json")
    arguments = ["fewer-steps", "--from", str(tmp_path / "plan.json"), "--out", str(out)]
    assert main([*arguments, "--steps", "5"]) == 0
    assert plans.load(out) == fewer_steps(plan, 5) and "5 steps" in capsys.readouterr().out
    assert main([*arguments, "--steps", "0"]) == 2
    assert "cannot take 0 steps; give 1 to 1000" in capsys.readouterr().err


def test_a_sampler_that_cannot_be_made_anew_is_refused() -> None:
    plan = full_plan(small_pipeline())
    for name in ("NoSuchScheduler", "AutoencoderKL"):
        other = plan.sampler.model_copy(update={"class_name": name})
        with pytest.raises(LoadError, match=f"{name} is no sampler of diffusers"):
            fewer_steps(plan.model_copy(update={"sampler": other}), 4)
    moved = plan.sampler.model_copy(update={"timesteps": (1000.0, *plan.sampler.timesteps[1:])})
    with pytest.raises(LoadError, match="step 0 is at 1000 in the plan, at 999 in the one made of it"):
        fewer_steps(plan.model_copy(update={"sampler": moved}), 4)
