"""Calibration of a text-to-video model, in Python and from the command line."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from small_latte import FRAMES, sample_latte, small_latte_pipeline, small_text_to_video
from small_models import small_pipeline

import ditfastattn
from calibration import cli
from calibration.calibrate import calibrate
from calibration.errors import CalibrationError
from calibration.settings import Settings
from calibration.subjects import condition_of
from ditfastattn import load_pipeline
from ditfastattn.decode import decode
from ditfastattn.errors import LoadError
from ditfastattn.layout import Layout
from ditfastattn.sampling import Denoiser, sample_latents
from eval.cli import main as evaluate
from plans import Method, Window, load

PROMPTS, STEPS = ("a red fox in the snow", "two boats"), 5


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_the_plan_followed_by_a_session_ends_where_calibration_ended(scale: float) -> None:
    pipe = small_text_to_video()
    given = Settings(threshold=0.3, prompts=PROMPTS, steps=STEPS, guidance_scale=scale)
    result, condition = calibrate(pipe, given), condition_of(pipe, given)
    assert result.latents.shape == (2, *condition.latent_shape) == (2, 4, FRAMES, 8, 8)
    for site in result.plan.sites.values():
        assert {method for row in site.methods for method in row} > {Method.FULL}
    assert result.plan.calibration is not None and result.plan.calibration.prompts == PROMPTS
    with ditfastattn.apply(pipe.transformer, result.plan):
        latents = sample_latents(Denoiser(pipe.transformer, condition, scale), pipe.scheduler, STEPS, 0, range(2))
    torch.testing.assert_close(latents, result.latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]])
def test_the_condition_is_what_the_pipeline_computes_with(
    prompts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, calls = small_text_to_video(), []
    given = condition_of(pipe, Settings(threshold=0.3, prompts=prompts, negative_prompt="grey")).arguments(
        Layout.UNCOND_FIRST
    )
    forward = pipe.transformer.forward

    def seen(**call: torch.Tensor) -> object:
        calls.append(call["encoder_hidden_states"])
        return forward(**call)

    monkeypatch.setattr(pipe.transformer, "forward", seen)
    pipe(list(prompts), "grey", num_inference_steps=1, video_length=FRAMES, height=16, width=16, output_type="latent",
         clean_caption=False)  # fmt: skip
    assert torch.equal(given["encoder_hidden_states"], calls[0])


def test_a_pipeline_that_cannot_encode_says_so() -> None:
    with pytest.raises(LoadError, match="no text_encoder and no tokenizer"):
        calibrate(small_latte_pipeline(), Settings(threshold=0.3, prompts=PROMPTS))


def test_a_model_of_images_has_no_temporal_window() -> None:
    given = Settings(threshold=0.3, labels=(1,), steps=2, temporal_window=Window(left=0, right=0))
    with pytest.raises(CalibrationError, match="no attention between frames"):
        calibrate(small_pipeline(), given)


def test_frames_are_decoded_one_by_one() -> None:
    pipe = small_latte_pipeline()
    latents = torch.randn(2, 4, FRAMES, 8, 8)
    pixels = decode(pipe.vae, latents)
    assert pixels.shape == (2, FRAMES, 16, 16, 3)
    assert torch.equal(pixels[1, 2], decode(pipe.vae, latents[1:, :, 2])[0])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_text_to_video().save_pretrained(tmp_path / "latte")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    output = tmp_path / "plan.json"
    command = ["--model", str(tmp_path / "latte"), "--threshold", "0.3", "--steps", "5", "--device", "cpu"]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(output)]
    assert cli.main([*command, "--temporal-window", "5"]) == 2
    assert "the window 5,5 is wider than the model's 4 frames" in capsys.readouterr().err
    command += ["--temporal-window", "0,1"]
    assert cli.main(command) == 0
    assert "guidance 7.5, calibrated on 2 prompts" in capsys.readouterr().out
    assert Image.open(tmp_path / "plan.images.png").size[0] > 200
    plan = load(output)
    assert plan.window_of("temporal") == Window(left=0, right=1) and plan.model.temporal is not None

    assert cli.main([*command, "--resume"]) == 0  # all taken over from the trace
    assert load(output).sites == plan.sites
    for layer, place in enumerate(["attn 0", "temporal 0", "attn 1", "temporal 1"]):
        capsys.readouterr()
        assert cli.main(["explain", str(output), "--layer", str(layer), "--step", "2"]) == 0
        site, number = place.split()
        method = plan.column(int(number), site)[2]  # type: ignore[arg-type]
        printed = capsys.readouterr().out
        assert f"layer {layer} ({place}): {method}" in printed and "(layer + 1) / 4" in printed
    assert cli.main(["explain", str(output), "--layer", "4", "--step", "2"]) == 2
    assert "layers 0..3" in capsys.readouterr().err

    pipe = load_pipeline(tmp_path / "latte")
    pipe.set_progress_bar_config(disable=True)
    with ditfastattn.apply(pipe, plan) as session:
        assert sample_latte(pipe, STEPS, 7.5).isfinite().all()
    assert len(session.summary().methods) > 1

    assert evaluate(["sample", "--model", str(tmp_path / "latte"), "--n", "1", "--out", str(tmp_path / "run")]) == 2
    assert "--prompts" in capsys.readouterr().err
