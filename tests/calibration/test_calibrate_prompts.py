"""Calibration on prompts: plain and replayed, in pieces, over ranks, and against a session that follows the plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_pipeline
from small_pixart import small_pixart_pipeline, small_text_to_image
from thread_ranks import on_ranks

import ditfastattn
import plans
from calibration.calibrate import Result, calibrate
from calibration.errors import CalibrationError
from calibration.settings import Settings
from calibration.subjects import condition_of, release_encoders
from ditfastattn.errors import LoadError
from ditfastattn.pieces import Pieces
from ditfastattn.ranks import Ranks
from ditfastattn.sampling import Denoiser, sample_latents
from plans import Method, dumps, loads
from plans.calibration import Calibration

PROMPTS, STEPS = ("a red fox in the snow", "two boats"), 6


def settings(**changes: Any) -> Settings:
    given = {"threshold": 0.3, "prompts": PROMPTS, "negative_prompt": "grey", "steps": STEPS, "guidance_scale": 4.5}
    return Settings(**given | changes)


def run(pipe: Any = None, **changes: Any) -> Result:
    return calibrate(pipe or small_text_to_image(), settings(**changes))


@pytest.mark.parametrize("threshold", [0.1, 0.4])
@pytest.mark.parametrize("order", ["raster", "hilbert"])
def test_replay_is_plain_cell_by_cell(threshold: float, order: str) -> None:
    replay, plain = (run(threshold=threshold, token_order=order, search=search) for search in ("replay", "plain"))
    assert replay.decisions == plain.decisions  # methods, every loss of every trial, to the last bit
    assert torch.equal(replay.latents, plain.latents)
    assert len({method for row in replay.plan.methods for method in row}) > 2  # or the comparison says little


@pytest.mark.parametrize("make", [
    lambda: small_text_to_image(),
    lambda: small_text_to_image(sigma=False),
    lambda: small_text_to_image(sigma=False, sample_size=128, patch_size=32),  # sizes as a condition
], ids=["sigma", "alpha", "alpha with sizes"])  # fmt: skip
@pytest.mark.parametrize("scale", [4.5, 1.0])
def test_the_plan_followed_by_a_session_ends_where_calibration_ended(make: Callable[[], Any], scale: float) -> None:
    pipe = make()
    given = settings(guidance_scale=scale, negative_prompt="grey" if scale != 1 else "")
    result, condition = calibrate(pipe, given), condition_of(pipe, given)
    assert {method for row in result.plan.methods for method in row} > {Method.FULL}
    assert result.plan.guidance.layout == ("uncond_first" if scale != 1 else "none")
    with ditfastattn.apply(pipe.transformer, result.plan):
        latents = sample_latents(Denoiser(pipe.transformer, condition, scale), pipe.scheduler, STEPS, 0, range(2))
    torch.testing.assert_close(latents, result.latents, rtol=1e-5, atol=1e-5)


def test_the_record_says_prompts_and_an_encoded_condition_needs_no_encoder() -> None:
    pipe = small_text_to_image()
    whole, condition = run(pipe), condition_of(pipe, settings())
    release_encoders(pipe)
    assert pipe.text_encoder is None and pipe.tokenizer is None
    again = calibrate(pipe, settings(), condition=condition)
    assert again.decisions == whole.decisions
    record = loads(dumps(again.plan)).calibration
    assert record is not None and (record.prompts, record.negative_prompt) == (PROMPTS, "grey")
    assert (record.labels, record.images, record.seed) == ((), 2, 0)
    with pytest.raises(LoadError, match="no text_encoder"):
        calibrate(pipe, settings())
    with pytest.raises(CalibrationError, match="the condition is of 1 images, the settings of 2"):
        calibrate(pipe, settings(), condition=condition.of([0]))


def test_prompts_and_the_negative_prompt_matter() -> None:
    losses = [
        run(**change).decisions[1].trials[0].loss
        for change in ({}, {"prompts": (PROMPTS[0], "a goat")}, {"negative_prompt": "sharp"})
    ]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("sigma", [True, False])
def test_in_pieces_it_finds_the_same_plan(sigma: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the compiled calibration but the compiler, which only rounds otherwise."""
    monkeypatch.setattr("calibration.bench.compiled_pieces", Pieces)
    config: dict[str, Any] = {} if sigma else {"sample_size": 128, "patch_size": 32}
    eager, pieces = (run(small_text_to_image(sigma, **config), compile=compile) for compile in (False, True))
    assert pieces.plan.methods == eager.plan.methods and pieces.block_runs == eager.block_runs
    assert {method for row in eager.plan.methods for method in row} > {Method.FULL}
    for ours, theirs in zip(pieces.decisions, eager.decisions, strict=True):
        for trial, expected in zip(ours.trials, theirs.trials, strict=True):
            assert trial.loss == pytest.approx(expected.loss, rel=1e-3, abs=1e-6)


def test_every_rank_arrives_at_the_plan_of_one_process() -> None:
    given = settings(prompts=(*PROMPTS, "a bowl of oranges"))
    alone = calibrate(small_text_to_image(), given)
    pipes = [small_text_to_image() for _ in range(2)]
    ours, theirs = on_ranks(2, lambda ranks: calibrate(pipes[ranks.rank], given, ranks=ranks))
    assert ours.decisions == theirs.decisions and ours.plan.methods == alone.plan.methods
    torch.testing.assert_close(ours.latents, alone.latents, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"3 processes cannot share 2 prompts: start at most one process a prom"):
        calibrate(small_text_to_image(), settings(), ranks=Ranks(0, 3))
    with pytest.raises(CalibrationError, match="conditioned on prompts: calibrate it on prompts, not labels"):
        calibrate(small_pixart_pipeline(), settings(prompts=(), negative_prompt="", labels=(1,)))
    with pytest.raises(CalibrationError, match="conditioned on classes: calibrate it on labels, not prompts"):
        calibrate(small_pipeline(), settings())
    with pytest.raises(CalibrationError, match="on labels or on prompts: give one of them"):
        settings(labels=(1,))
    with pytest.raises(CalibrationError, match="at least one label or prompt for PixArtTransformer2DModel"):
        calibrate(small_pixart_pipeline(), settings(prompts=(), negative_prompt=""))
    with pytest.raises(CalibrationError, match="a negative prompt is the other branch of guidance"):
        settings(guidance_scale=1.0)


def test_a_plan_on_labels_is_written_as_before() -> None:
    """The key of negative prompts is not in it, and one that lacks it is read."""
    plan = calibrate(small_pipeline(), Settings(threshold=0.3, labels=(1,), steps=3)).plan
    text = dumps(plan)
    assert "negative_prompt" not in text and dumps(loads(text)) == text
    for path in (Path(plans.__file__).parent / "library").glob("*.json"):
        assert dumps(plans.load(path)) == path.read_text()
    assert plan.calibration is not None and Calibration(**plan.calibration.model_dump()) == plan.calibration
