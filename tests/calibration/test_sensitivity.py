"""Sensitivities against sampling with nothing but hooks, and the loss that is weighted by them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import label_denoiser, small_pipeline
from thread_ranks import on_ranks

from calibration.calibrate import Result, calibrate
from calibration.errors import CalibrationError
from calibration.journal import Journal
from calibration.loss import relative_l2
from calibration.settings import Settings
from calibration.work import Watch
from ditfastattn.ranks import ALONE
from ditfastattn.sampling import Trajectory
from plans import Method

STEPS, LABELS = 4, (1, 2)


def run(pipe: Any, threshold: float = 0.3, journal: Journal | None = None, **kwargs: Any) -> Result:
    given = {"labels": LABELS, "steps": STEPS, "loss": "drift"} | kwargs
    return calibrate(pipe, Settings(threshold=threshold, **given), journal)


def formula(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    return float((candidate - reference).double().norm() / reference.double().norm())


def disturbed_by_hooks(pipe: Any, disturbed: int, layers: range, scale: float = 4.0) -> tuple[float, float]:
    """Relative L2 of the guided prediction of a step whose ``layers`` give their last attention output again, and of
    the final latents, by diffusers' own model."""
    denoiser = label_denoiser(pipe, LABELS, scale)
    kept: dict[int, torch.Tensor] = {}
    now = 0

    def sampled(layers: range) -> tuple[torch.Tensor, torch.Tensor]:
        """The guided prediction of the disturbed step, and the final latents."""
        nonlocal now

        def hook(layer: int, out: torch.Tensor) -> torch.Tensor:
            if now == disturbed and layer in layers:
                return kept[layer]
            if now == disturbed - 1:
                kept[layer] = out.clone()
            return out

        handles = [
            block.attn1.register_forward_hook(lambda m, a, out, layer=layer: hook(layer, out))
            for layer, block in enumerate(pipe.transformer.transformer_blocks)
        ]
        trajectory = Trajectory(denoiser, pipe.scheduler, STEPS, 0, range(len(LABELS)))
        guided = torch.empty(0)
        for now in range(STEPS):
            output = trajectory.predict(now)
            if now == disturbed:
                conditional, unconditional = (half[:, :4] for half in output.chunk(2))  # sigma channels dropped
                guided = unconditional + scale * (conditional - unconditional) if scale != 1 else output[:, :4]
            trajectory.advance(now, output)
        for handle in handles:
            handle.remove()
        return guided, trajectory.latents

    with torch.no_grad():
        (full, end), (ours, other) = sampled(range(0)), sampled(layers)
    return formula(full, ours), formula(end, other)


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_sensitivities_are_those_of_sampling_with_a_step_replaced(scale: float) -> None:
    pipe = small_pipeline()
    found = run(pipe, guidance_scale=scale)
    assert found.sensitivities[0].value == 0 and len(found.sensitivities) == STEPS
    for step in (1, STEPS - 1):
        loss, drift = disturbed_by_hooks(pipe, step, range(4), scale)
        assert found.sensitivities[step].loss == pytest.approx(loss, rel=1e-3)
        assert found.sensitivities[step].drift == pytest.approx(drift, rel=1e-3)
        assert found.sensitivities[step].value == pytest.approx(drift / loss, rel=2e-3)
    record = found.plan.calibration
    assert record is not None and record.sensitivity == tuple(s.value for s in found.sensitivities)


def test_a_trial_is_weighted_by_the_sensitivity_of_its_step() -> None:
    pipe = small_pipeline()
    found = run(pipe)
    trial = found.decisions[1].trials[0]
    assert (trial.layer, trial.method) == (0, Method.AST) and trial.limit == pytest.approx(0.3 / 4)
    loss, drift = disturbed_by_hooks(pipe, 1, range(1))
    assert trial.loss == pytest.approx(loss * found.sensitivities[1].value, rel=1e-3)
    assert trial.loss == pytest.approx(drift, rel=0.5)  # what it is for


@pytest.mark.parametrize("threshold", [0.02, 0.2])
def test_replay_is_plain_with_weighted_losses(threshold: float) -> None:
    replay, plain = (run(small_pipeline(), threshold, search=search) for search in ("replay", "plain"))
    assert replay.decisions == plain.decisions and replay.sensitivities == plain.sensitivities
    assert len({method for decision in replay.decisions for method in decision.methods}) > 1


def test_channels_that_the_sampler_drops_weigh_nothing() -> None:
    usual, other = small_pipeline(), small_pipeline()
    head = other.transformer.proj_out_2
    head.weight.data.unflatten(0, (2, 2, 8))[:, :, 4:] *= 30  # the learned sigma of each pixel of a patch
    assert run(other).decisions == run(usual).decisions


@pytest.mark.parametrize("stop_after", [0, 2])
def test_an_interrupted_measurement_goes_on(tmp_path: Path, stop_after: int) -> None:
    pipe = small_pipeline()
    expected = run(pipe)
    settings = Settings(threshold=0.3, labels=LABELS, steps=STEPS, loss="drift")
    path, seen = tmp_path / "plan.trace.jsonl", 0

    def stop(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen > stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe, settings, Journal(path, {}, False), watch=Watch(on_sensitivity=stop))
    journal = Journal(path, {}, resume=True)
    assert len(journal.trace.sensitivities) == stop_after + 1
    resumed = run(pipe, journal=journal)
    assert (resumed.sensitivities, resumed.decisions) == (expected.sensitivities, expected.decisions)
    assert stop_after == 0 or resumed.measuring_runs < expected.measuring_runs
    again = run(pipe, journal=Journal(path, {}, resume=True))
    assert again.decisions == expected.decisions and again.measuring_runs == 0


def test_sensitivities_of_another_threshold_are_taken_over() -> None:
    pipe = small_pipeline()
    first = run(pipe)
    settings = Settings(threshold=0.1, labels=LABELS, steps=STEPS, loss="drift")
    second = calibrate(pipe, settings, sensitivities=first.sensitivities)
    assert second.measuring_runs == 0 and second.decisions == run(pipe, 0.1).decisions


@pytest.mark.parametrize("labels", [(1, 2, 3)])
def test_every_rank_measures_the_same(labels: tuple[int, ...]) -> None:
    alone = run(small_pipeline(), labels=labels)
    settings = Settings(threshold=0.3, labels=labels, steps=STEPS, loss="drift")
    one, two = on_ranks(2, lambda ranks: calibrate(small_pipeline(), settings, ranks=ranks))
    assert (one.sensitivities, one.decisions) == (two.sensitivities, two.decisions)
    assert one.plan.methods == alone.plan.methods
    for ours, theirs in zip(one.sensitivities[1:], alone.sensitivities[1:], strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-3)


def test_relative_l2_over_ranks_and_where_there_is_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 4, 3, 3, generator=generator)
    b = a + torch.randn(a.shape, generator=generator) * torch.arange(5)[:, None, None, None]
    parts = list(zip(a.split((2, 3)), b.split((2, 3)), strict=True))
    found = on_ranks(2, lambda ranks: relative_l2(*parts[ranks.rank], ranks))
    assert found[0] == found[1] == pytest.approx(formula(a, b), rel=1e-6)
    nothing = torch.zeros(2)
    assert relative_l2(nothing, nothing, ALONE) == 0 and relative_l2(nothing, nothing + 1, ALONE) == math.inf
    assert math.isnan(relative_l2(a, b / 0, ALONE))


@pytest.mark.parametrize("sampler", ["dpm", "ddpm", "heun"])
def test_a_fork_goes_its_own_way_with_the_same_noise(sampler: str) -> None:
    pipe = small_pipeline(sampler=sampler)
    with torch.no_grad():
        whole = Trajectory(label_denoiser(pipe, LABELS, 4.0), pipe.scheduler, STEPS, 0, range(2))
        steps = len(whole.timesteps)
        whole.advance(0, whole.predict(0))
        other, third = whole.fork(), whole.fork()
        for step in range(1, steps):
            other.advance(step, other.predict(step))
        middle = whole.latents.clone()
        third.advance(1, third.predict(1) * 2)
        assert torch.equal(whole.latents, middle)
        for step in range(1, steps):
            whole.advance(step, whole.predict(step))
    assert torch.equal(whole.latents, other.latents) and not torch.equal(middle, other.latents)


def test_a_model_that_runs_away_is_refused() -> None:
    pipe = small_pipeline()
    pipe.transformer.proj_out_2.bias.data[0] = torch.nan
    with pytest.raises(CalibrationError, match="NaN"):
        run(pipe)
