"""Calibrating one's own transformer: beside a built-in one that computes the same, and to a plan in a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_own import LABELS, NULL, STEPS, condition, ddim_scheduler, settings
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from own_dit import OwnDiT, own_dit, registration
from small_models import small_pipeline
from torch import Tensor, nn

import ditfastattn
from calibration import cli
from calibration.calibrate import Result, calibrate
from calibration.errors import CalibrationError
from calibration.journal import read_trace
from calibration.priced import priced
from calibration.prices import Macs
from calibration.saving import calibrate_to
from ditfastattn.sampling import Denoiser, sample_latents
from plans import Method, load

SHARED = (Method.WA_RS_ASC, Method.WA_RS, Method.ASC)
pytestmark = pytest.mark.usefixtures("own_dit_registered")


def both(seed: int = 0, sampler: str = "dpm", **changes: Any) -> tuple[Result, Result]:
    """A built-in model's calibration, and that of one's own with its weights."""
    pipe = small_pipeline(seed=seed, sampler=sampler)
    theirs = calibrate(pipe, settings(labels=LABELS, **changes))
    model = own_dit(pipe.transformer)
    ours = calibrate(model, settings(**changes), scheduler=pipe.scheduler, condition=condition())
    return ours, theirs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 1, "sampler": "ddim", "search": "plain"},
        {"seed": 2, "sampler": "iddpm", "methods": (Method.AST, Method.WA_RS), "loss": "mse", "threshold": 0.02},
        {"guidance_scale": 1.0, "sampler": "heun", "loss": "cosine", "threshold": 0.05},
        {"loss": "drift", "threshold": 0.1, "methods": SHARED, "steps": 4},
        {"loss": "drift", "threshold": None, "budget": 0.2, "methods": SHARED, "steps": 3},
    ],
)
def test_the_plan_is_that_of_the_built_in_model_cell_by_cell(changes: dict[str, Any]) -> None:
    ours, theirs = both(**changes)
    assert ours.plan.sites == theirs.plan.sites  # methods and losses, to the last bit
    assert ours.decisions == theirs.decisions and ours.sensitivities == theirs.sensitivities
    assert torch.equal(ours.latents, theirs.latents)
    assert (ours.plan.sampler, ours.plan.guidance) == (theirs.plan.sampler, theirs.plan.guidance)
    here, there = ours.plan.calibration, theirs.plan.calibration
    assert here is not None and there is not None
    assert here.images == there.images == here.conditions == 2 and there.conditions == 0
    assert (here.threshold, here.budget) == (there.threshold, there.budget)
    used = {method for row in ours.plan.methods for method in row}
    assert used > {Method.FULL}  # or the comparison says little


def test_its_prices_are_those_of_the_built_in_model() -> None:
    pipe, drift = small_pipeline(), {"loss": "drift", "steps": 4}
    theirs = priced(pipe, settings(labels=LABELS, **drift), mlps=False)
    ours = priced(
        own_dit(pipe.transformer), settings(**drift), mlps=False, scheduler=pipe.scheduler, condition=condition()
    )
    assert ours.sensitivities == theirs.sensitivities
    cost = 0.9 * Macs().of(theirs.plan)
    assert ours.menu.costing(cost).sites == theirs.menu.costing(cost).sites != theirs.plan.sites
    with pytest.raises(CalibrationError, match="cannot reach the MLPs of OwnDiT"):
        priced(own_dit(pipe.transformer), settings(), mlps=True, scheduler=pipe.scheduler, condition=condition())


@pytest.mark.parametrize("search", ["replay", "plain"])
def test_a_model_that_writes_to_its_tensors_has_the_same_plan(search: str) -> None:
    """What attention was given, and what it gave, changed in place."""

    class InPlace(OwnDiT):
        def add(self, hidden: Tensor, gate: Tensor, attention: nn.Module, x: Tensor) -> Tensor:
            output = attention(x)
            x.zero_()
            return output.mul_(gate).add_(hidden)

    transformer = small_pipeline().transformer
    expected, found = (
        calibrate(
            own_dit(transformer, cls),
            settings(search=search, threshold=0.1),
            scheduler=small_pipeline().scheduler,
            condition=condition(),
        )
        for cls in (OwnDiT, InPlace)
    )
    for ours, theirs in zip(found.decisions, expected.decisions, strict=True):
        assert ours.methods == theirs.methods and [t.method for t in ours.trials] == [t.method for t in theirs.trials]
        assert [t.loss for t in ours.trials] == pytest.approx([t.loss for t in theirs.trials], rel=1e-3)
    assert any(trial.method.windowed for decision in found.decisions for trial in decision.trials)
    torch.testing.assert_close(found.latents, expected.latents)
    model = own_dit(transformer, InPlace)
    with ditfastattn.apply(model, found.plan):
        run = sample_latents(Denoiser(model, condition(), 4.0), small_pipeline().scheduler, STEPS, 0, range(2))
    assert torch.equal(run, found.latents)


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler(),
        HeunDiscreteScheduler(),
        UniPCMultistepScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
)
def test_any_sampler_and_the_saved_plan_in_ones_own_loop(tmp_path: Path, scheduler: Any) -> None:
    model = own_dit(small_pipeline().transformer)
    found = calibrate_to(tmp_path / "mine.json", model, settings(steps=3), scheduler=scheduler, condition=condition())
    latents = sample_latents_by_hand(model, scheduler, tmp_path / "mine.json", found.latents)
    torch.testing.assert_close(latents, found.latents, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def sample_latents_by_hand(model: Any, scheduler: Any, plan: Path, like: Tensor) -> Tensor:
    """A loop as a user writes it, from the noise of the calibration."""
    from ditfastattn.sampling import image_generators

    noise = torch.stack([torch.randn(like.shape[1:], generator=g) for g in image_generators(0, range(len(like)))])
    label = torch.tensor([*LABELS, NULL, NULL])
    with ditfastattn.apply(model, plan, scheduler=scheduler) as session:
        scheduler.set_timesteps(3)
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        scaled = getattr(scheduler, "scale_model_input", lambda x, _: x)
        for time in scheduler.timesteps:
            both = torch.cat([scaled(x, time)] * 2)
            cond, uncond = model(both, time.expand(4), label)[:, :4].chunk(2)
            x = scheduler.step(uncond + 4.0 * (cond - uncond), time, x).prev_sample
        assert session.summary().runs_finished == 1
    return x


def test_files_resuming_and_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = tmp_path / "mine.json", own_dit(small_pipeline().transformer)
    given = {"scheduler": small_pipeline().scheduler, "condition": condition()}
    found = calibrate_to(path, model, settings(), **given)
    assert load(path) == found.plan and tuple(read_trace(path.with_suffix(".trace.jsonl"))[1]) == found.decisions
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["explain", str(path), "--layer", "0", "--step", "1"]) == 0
    assert "loss mrae" in capsys.readouterr().out
    again = calibrate_to(path, model, settings(), **given, resume=True)
    assert again.resumed_steps == STEPS and again.plan.sites == found.plan.sites
    another = {"condition": condition(conditional={"label": torch.tensor([1, 3])}), "sampler": ddim_scheduler()}
    for name, value in another.items():
        changed = given | {"scheduler" if name == "sampler" else name: value}
        with pytest.raises(CalibrationError, match=rf"other settings \({name}\)"):
            calibrate_to(path, model, settings(), **changed)
    model.leave.bias.data += 1
    with pytest.raises(CalibrationError, match=r"other settings \(weights\)"):
        calibrate_to(path, model, settings(), **given)
    (tmp_path / "note.json").write_text("{}")
    for name, words in (("note.json", "not written by a calibration"), ("plan.txt", "a plan is a .json file")):
        with pytest.raises(CalibrationError, match=words):
            calibrate_to(tmp_path / name, model, settings(), **given)


def test_a_bare_transformer_of_diffusers_needs_no_pipeline() -> None:
    pipe = small_pipeline()
    expected = calibrate(pipe, settings(labels=LABELS))
    found = calibrate(pipe.transformer, settings(labels=LABELS), scheduler=pipe.scheduler)
    assert found.plan.sites == expected.plan.sites


def test_a_model_that_is_told_nothing_and_ignores_its_timestep() -> None:
    class Blind(OwnDiT):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return super().forward(x, torch.zeros_like(time), torch.zeros_like(time))

    call = lambda x, time: ditfastattn.Call(x, time, None)  # noqa: E731
    ditfastattn.register(Blind, **registration(guided="none", unconditional=None, call=call))
    model = own_dit(small_pipeline().transformer, Blind)
    given = {"scheduler": ddim_scheduler(), "condition": condition(conditional={}, unconditional=None, images=3)}
    found = calibrate(model, settings(guidance_scale=1.0), **given)
    assert found.plan.calibration is not None and found.plan.calibration.images == 3 and len(found.latents) == 3
    assert {method for row in found.plan.methods for method in row} > {Method.FULL}
    with pytest.raises(CalibrationError, match='Blind was registered with guided="none"'):
        calibrate(model, settings(), **given)


def test_a_model_called_by_other_names_at_other_times() -> None:
    class Named(OwnDiT):
        def forward(self, *, image: Tensor, progress: Tensor, kind: dict[str, Tensor]) -> Tensor:
            return super().forward(image, (progress * 1000).round(), kind["label"])

    ditfastattn.register(
        Named,
        **registration(
            call=lambda image, progress, kind: ditfastattn.Call(image, progress * 1000, kind["label"]),
            predict=lambda model, x, time, **kind: model(image=x, progress=time / 1000, **kind),
        ),
    )
    pipe = small_pipeline()
    given = {name: {"kind": value} for name, value in vars(condition()).items() if name.endswith("conditional")}
    model = own_dit(pipe.transformer, Named)
    found = calibrate(model, settings(), scheduler=pipe.scheduler, condition=condition(**given))
    assert found.plan.sites == calibrate(pipe, settings(labels=LABELS)).plan.sites
