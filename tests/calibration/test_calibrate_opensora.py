"""Calibration of Open-Sora, in Python and from the command line: both sites of every block, videos of any size."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_latte import small_text_to_video
from small_models import small_pipeline
from small_opensora import small_opensora

import ditfastattn
from calibration import calibrate_cli, cli
from calibration.algorithm import Decision
from calibration.calibrate import Result, calibrate
from calibration.errors import CalibrationError
from calibration.settings import Settings
from calibration.subjects import condition_of, release_encoders
from ditfastattn import load_pipeline
from ditfastattn.condition import VideoSize
from ditfastattn.errors import ApplyError, LoadError
from ditfastattn.models.opensora import OpenSora
from ditfastattn.opensora import OpenSoraPipeline
from ditfastattn.pipelines import usual_schedule
from ditfastattn.sampling import Denoiser, Trajectory, image_generators, sample_latents
from plans import Method, PlanMismatch, Window, dumps, load, loads
from plans.cli import main as plans_main

PROMPTS, STEPS = ("a boat on the sea", "a cat"), 5
SIZE = VideoSize(4, 12, 17)  # 6 x 8 latents


def settings(**more: Any) -> Settings:
    given = {"threshold": 0.3, "prompts": PROMPTS, "steps": STEPS, "guidance_scale": 7.0, "video": SIZE}
    return Settings(**(given | more))


def by_the_pipeline(pipe: OpenSoraPipeline, **more: Any) -> torch.Tensor:
    """Latents of the pipeline's own run on the same noise."""
    given: dict[str, Any] = {"num_frames": 4, "height": 12, "width": 17, "num_inference_steps": STEPS} | more
    frames: torch.Tensor = pipe(
        list(PROMPTS), generator=image_generators(0, range(2)), output_type="latent", **given
    ).frames
    return frames


@pytest.mark.parametrize("scale", [7.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_transformer_is_told_what_the_pipeline_tells_it(
    scale: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = small_opensora()
    pipe.transformer.to(dtype)
    calls: list[dict[str, torch.Tensor]] = []
    forward = pipe.transformer.forward

    def seen(x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor, **told: torch.Tensor) -> torch.Tensor:
        calls.append({"x": x, "timestep": timestep, "y": y, **told})
        return forward(x, timestep, y, **told)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.transformer, "forward", seen)
        expected = by_the_pipeline(pipe, guidance_scale=scale)
    condition = condition_of(pipe, settings(guidance_scale=scale))
    denoiser = Denoiser(pipe.transformer, condition, scale)
    run = Trajectory(denoiser, pipe.scheduler, STEPS, 0, range(2))
    rows = 2 if scale == 1 else 4
    ours = {
        "x": run.latents.repeat(rows // 2, 1, 1, 1, 1), "timestep": run.timesteps[0].expand(rows), **denoiser.arguments
    }  # fmt: skip
    assert ours.keys() == calls[0].keys()
    for name, tensor in calls[0].items():
        assert torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype, name
    assert torch.equal(sample_latents(denoiser, pipe.scheduler, STEPS, 0, range(2)), expected)


@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
def test_samplers_without_the_variance_are_the_pipelines_too(sampler: str) -> None:
    pipe = small_opensora(sampler)
    denoiser = Denoiser(pipe.transformer, condition_of(pipe, settings()), 7.0)
    assert torch.equal(sample_latents(denoiser, pipe.scheduler, STEPS, 0, range(2)), by_the_pipeline(pipe))


@pytest.fixture(scope="module")
def found() -> tuple[OpenSoraPipeline, Result]:
    pipe = small_opensora()
    return pipe, calibrate(pipe, settings())


def test_both_sites_are_decided_and_the_pipeline_ends_where_calibration_ended(
    found: tuple[OpenSoraPipeline, Result],
) -> None:
    pipe, result = found
    plan = loads(dumps(result.plan))
    assert plan.sites.keys() == {"attn", "temporal"}
    for site in plan.sites.values():
        assert {method for row in site.methods for method in row} > {Method.FULL}
        assert all(loss is None for loss in site.losses[0]) and any(
            loss is not None for row in site.losses for loss in row
        )
    assert plan.model == OpenSora(pipe.transformer).spec_of(4, 6, 8) and plan.guidance.layout == "cond_first"
    record = plan.calibration
    assert record is not None and (record.video, record.prompts, record.negative_prompt) == (SIZE, PROMPTS, None)
    plain = by_the_pipeline(pipe)
    with ditfastattn.apply(pipe, plan):
        compressed = by_the_pipeline(pipe)
    torch.testing.assert_close(compressed, result.latents, rtol=1e-4, atol=1e-4)
    assert not torch.equal(compressed, plain) and torch.equal(by_the_pipeline(pipe), plain)
    with ditfastattn.apply(pipe, plan), pytest.raises(PlanMismatch, match="tokens: the plan has 12, this run 16"):
        by_the_pipeline(pipe, height=16)


def test_replay_is_plain_to_the_last_bit_of_every_loss(found: tuple[OpenSoraPipeline, Result]) -> None:
    def losses(decisions: tuple[Decision, ...]) -> list[list[tuple[int, Method, float]]]:
        return [[(trial.layer, trial.method, trial.loss) for trial in decision.trials] for decision in decisions]

    pipe, replayed = found
    plain = calibrate(pipe, settings(search="plain"))
    assert losses(plain.decisions) == losses(replayed.decisions) and plain.plan.sites == replayed.plan.sites
    assert torch.equal(plain.latents, replayed.latents)
    assert plain.block_runs > replayed.block_runs


def test_without_guidance_nothing_shares_it() -> None:
    plan = calibrate(small_opensora(), settings(guidance_scale=1.0, steps=3)).plan
    assert not any(method.shares_guidance for site in plan.sites.values() for row in site.methods for method in row)


def test_half_precision_keeps_its_latents_in_float32() -> None:
    pipe = small_opensora()
    pipe.transformer.to(torch.bfloat16)
    condition = condition_of(pipe, settings())
    pipe.release_text_encoder()
    with pytest.raises(LoadError, match="no text_encoder"):
        condition_of(pipe, settings())
    result = calibrate(pipe, settings(steps=3), condition=condition)
    assert result.latents.dtype == torch.float32 and result.latents.isfinite().all()


def test_the_model_is_left_as_it_was(found: tuple[OpenSoraPipeline, Result]) -> None:
    pipe = small_opensora()
    before = [dict(module.__dict__) for module in pipe.transformer.modules()]
    calibrate(pipe, settings(steps=2))
    assert [dict(module.__dict__) for module in pipe.transformer.modules()] == before
    with pytest.raises(PlanMismatch, match="LatteTransformer3DModel"):
        ditfastattn.apply(small_text_to_video(), found[1].plan)


def test_sizes_are_read_and_refused() -> None:
    assert VideoSize.parse(" 16x240X426") == (16, 240, 426) and str(VideoSize(16, 240, 426)) == "16x240x426"
    for text in ("16x240", "0x8x8", "16x240x426x3", "16,240,426", "ax8x8", "-1x8x8", "²x8x8", "9x9x99999"):
        with pytest.raises(ValueError, match="FRAMESxHEIGHTxWIDTH"):
            VideoSize.parse(text)
    with pytest.raises(ApplyError, match="videos of 4x1x8 have no latents: each side needs 2 pixels"):
        condition_of(small_opensora(), settings(video=VideoSize(4, 1, 8)))
    with pytest.raises(ApplyError, match="LattePipeline was made for one size"):
        condition_of(small_text_to_video(), settings())
    with pytest.raises(ApplyError, match="OpenSoraPipeline guides away from a caption of its own"):
        condition_of(small_opensora(), settings(negative_prompt="grey"))
    with pytest.raises(CalibrationError, match="videos are made from prompts"):
        Settings(threshold=0.3, labels=(1,), video=SIZE)
    assert condition_of(small_opensora(), settings(video=None)).latent_shape == (4, 16, 120, 213)


def test_the_schedule_is_the_familys(tmp_path: Path) -> None:
    assert usual_schedule("opensora") == usual_schedule("hpcai-tech/OpenSora-STDiT-v2-stage3") == ("iddpm", 200)
    assert (usual_schedule("opensora", "dpm"), usual_schedule("demo")) == (("dpm", 50), ("dpm", 50))
    assert usual_schedule("demo", "iddpm") == ("iddpm", 250)
    small_opensora(text=False).save_config(tmp_path)
    assert usual_schedule(str(tmp_path)) == ("iddpm", 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "opensora"
    small_opensora().save_pretrained(path)
    return path


def test_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    output = tmp_path / "plan.json"
    command = ["--model", str(folder), "--threshold", "0.3", "--steps", "4", "--device", "cpu", "--video", "4x12x17"]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(output)]
    released: list[Any] = []

    def calibrating(pipe: Any, *args: Any) -> Result:
        released.append((pipe.text_encoder, pipe.tokenizer))
        return calibrate(pipe, *args)

    monkeypatch.setattr(calibrate_cli, "calibrate", calibrating)
    assert cli.main(command) == 0
    assert released == [(None, None)]  # freed before the search begins
    printed = capsys.readouterr().out
    assert "4 iddpm steps" in printed and "guidance 7, calibrated on 2 prompts, videos of 4x12x17:" in printed
    assert Image.open(tmp_path / "plan.images.png").size[0] > 200 and (tmp_path / "plan.png").exists()
    plan = load(output)
    assert (plan.sampler.class_name, plan.steps) == ("IDDPMScheduler", 4)
    assert plan.window_of("temporal") == Window.default(4)

    assert cli.main([*command, "--resume"]) == 0  # all taken over from the trace
    assert load(output).sites == plan.sites
    for layer, place in enumerate(["attn 0", "temporal 0", "attn 1", "temporal 1"]):
        capsys.readouterr()
        assert cli.main(["explain", str(output), "--layer", str(layer), "--step", "2"]) == 0
        assert f"layer {layer} ({place}): " in capsys.readouterr().out
    assert plans_main(["show", str(output), "--out", str(tmp_path / "shown.svg")]) == 0
    assert "temporal" in (tmp_path / "shown.svg").read_text()
    assert cli.main([*command[:-4], "--video", "5x12x17", *command[-4:], "--resume"]) == 2
    assert "other settings (video)" in capsys.readouterr().err
    pipe = load_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    with ditfastattn.apply(pipe, plan) as session:
        assert by_the_pipeline(pipe, num_inference_steps=4).isfinite().all()
    assert len(session.summary().methods) > 1


def test_a_checkpoint_brings_its_parts_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    """As the published one lies on the hub: the transformer alone; four of our prompts are the default."""
    bare, encoder = tmp_path / "bare", tmp_path / "t5"
    pipe = load_pipeline(folder)
    pipe.transformer.save_pretrained(bare)
    pipe.text_encoder.save_pretrained(encoder)
    pipe.tokenizer.save_pretrained(encoder)
    command = ["--model", str(bare), "--vae", str(folder / "vae"), "--text-encoder", str(encoder), "--device", "cpu"]
    command += ["--threshold", "0.3", "--steps", "2", "--video", "2x8x8", "--output", str(tmp_path / "out")]
    assert cli.main(command) == 0
    record = load(tmp_path / "out" / "bare-iddpm2-mrae-0.3.json").calibration
    assert record is not None and len(record.prompts) == 4 and record.video == (2, 8, 8)


def test_in_half_precision_the_text_encoder_stays_wide(folder: Path) -> None:
    pipe = load_pipeline(folder, dtype=torch.bfloat16)
    assert (pipe.transformer.dtype, pipe.vae.dtype, pipe.text_encoder.dtype) == (
        torch.bfloat16, torch.bfloat16, torch.float32
    )  # fmt: skip


def test_the_readmes_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, but for the model, and fewer steps of smaller videos."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = next(text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "calibrate(" in text)
    shorter = [
        ("steps=200, guidance_scale=7.0)", "steps=3, guidance_scale=7.0, video=SIZE)"),
        ("prompt_mask=mask)", "prompt_mask=mask, num_frames=4, height=12, width=17, num_inference_steps=3)"),
    ]
    for before, after in shorter:
        assert before in code
        code = code.replace(before, after)
    monkeypatch.setattr(ditfastattn, "load_pipeline", lambda *_, **__: small_opensora())
    monkeypatch.chdir(tmp_path)
    exec(code, {"SIZE": SIZE})
    with Image.open("boats.gif") as gif:
        assert gif.size == (16, 12)


def test_what_does_not_fit_gets_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_pipeline().save_pretrained(tmp_path / "dit")
    for model, more, words in [
        (folder, ["--video", "240p"], "--video: a video's size is FRAMESxHEIGHTxWIDTH in pixels, such as 16x240x426"),
        (folder, ["--video", "4x1x1"], "videos of 4x1x1 have no latents"),
        (folder, ["--video", "4x12x17", "--negative-prompt", "grey"], "leave the negative prompt out"),
        (folder, ["--video", "4x12x17", "--temporal-window", "5"], "the window 5,5 is wider than the model's 4 frames"),
        (folder, ["--video", "4x12x17", "--compile"], "cannot be run with compile=True"),
        (folder, ["--video", "4x12x17", "--token-order", "tile"], "STDiT2's blocks hold those of all frames"),
        (folder, ["--labels", "3"], "--labels goes with classes"),
        (tmp_path / "dit", ["--video", "4x12x17"], "--video goes with text, but DiTTransformer2DModel is conditioned"),
        (tmp_path / "dit", ["--text-encoder", "t5"], "text_encoder= goes with Open-Sora's checkpoints"),
    ]:
        command = ["--model", str(model), "--threshold", "0.3", "--steps", "2", "--device", "cpu", *more]
        assert cli.main([*command, "--output", str(tmp_path / "out")]) == 2, words
        error = capsys.readouterr().err.splitlines()  # transformers shows bars while it loads
        assert error[-1].startswith("error: ") and words in error[-1] and "Traceback" not in "".join(error)
        assert not (tmp_path / "out").exists()


def test_release_encoders_drops_both() -> None:
    pipe = small_opensora()
    release_encoders(pipe)
    assert pipe.text_encoder is None and pipe.tokenizer is None
