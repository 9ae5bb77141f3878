"""The command line on a text-to-image pipeline's folder, and every kind of bad prompt."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import small_pipeline
from small_pixart import small_pixart_pipeline, small_text_to_image

import ditfastattn
from calibration import calibrate_cli, command
from calibration.cli import main
from calibration.errors import CalibrationError
from calibration.prompts import OURS, choose_prompts, read_prompts
from ditfastattn import load_pipeline
from plans import Method, PlanMismatch, Window, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "painter"
    small_text_to_image().save_pretrained(path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red fox  in the snow\n\n two $ boats _$ \na goat\n")
    return path


def base(folder: Path, output: Path, *more: str) -> list[str]:
    return ["--model", str(folder), "--threshold", "0.3", "--steps", "5", "--device", "cpu", "--output", str(output),
            *more]  # fmt: skip


def test_a_plan_from_prompts_end_to_end(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoders: list[weakref.ref[Any]] = []

    def loading(*args: Any, **kwargs: Any) -> Any:
        pipe = load_pipeline(*args, **kwargs)
        encoders.append(weakref.ref(pipe.text_encoder))
        return pipe

    calibrate = calibrate_cli.calibrate

    def calibrating(*args: Any, **kwargs: Any) -> Any:
        assert encoders[0]() is None  # freed before the search begins
        return calibrate(*args, **kwargs)

    monkeypatch.setattr(command, "load_pipeline", loading)
    monkeypatch.setattr(calibrate_cli, "calibrate", calibrating)
    output = tmp_path / "plan.json"
    more = ["--prompts", str(prompts), "--n-calib", "2", "--negative-prompt", "grey  and blurred"]
    assert main(base(folder, output, *more)) == 0
    printed = capsys.readouterr().out
    assert "guidance 4.5, calibrated on 2 prompts, away from 'grey and blurred':\n  a red fox in the snow\n" in printed
    assert "on other noise, the same prompts" in printed
    assert Image.open(tmp_path / "plan.images.png").size[0] > 200

    plan = load(output)
    record = plan.calibration
    assert record is not None and record.prompts == ("a red fox in the snow", "two $ boats _$")
    assert (record.negative_prompt, record.labels, record.seed) == ("grey and blurred", (), 0)
    assert plan.guidance.scale == 4.5 and plan.guidance.layout == "uncond_first"
    assert plan.window == Window(left=2, right=2) and plan.steps == 5
    assert {method for row in plan.methods for method in row} > {Method.FULL}

    pipe = load_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"prompt": "a goat", "num_inference_steps": 5, "output_type": "latent", "clean_caption": False,
                 "use_resolution_binning": False}  # fmt: skip
    with ditfastattn.apply(pipe, plan) as session:
        image = pipe(guidance_scale=4.5, **arguments).images
        with pytest.raises(PlanMismatch, match=r"guidance scale: the plan has 4\.5, this run 4"):
            pipe(guidance_scale=4.0, **arguments)
    assert isinstance(image, torch.Tensor) and image.isfinite().all() and len(session.summary().methods) > 1
    with pytest.raises(PlanMismatch, match="PixArtTransformer2DModel"):
        ditfastattn.apply(small_pipeline(), plan)

    assert main(base(folder, output, *more[:-1], "sharp")) == 2
    assert "other settings (negative_prompt)" in capsys.readouterr().err
    assert main(base(folder, output, *more, "--resume")) == 0  # all taken over from the trace
    assert load(output).methods == plan.methods


def test_six_of_our_own_prompts_are_the_default(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(base(folder, tmp_path / "p.json", "--steps", "2", "--guidance", "2")) == 0
    record = load(tmp_path / "p.json").calibration
    ours = OURS.read_text().splitlines()
    assert record is not None and record.prompts == tuple(ours[:6]) and record.negative_prompt == ""
    assert "guidance 2, calibrated on 6 prompts:" in capsys.readouterr().out
    assert len(set(ours)) == 12


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        (None, [], "cannot be read (No such file or directory)"),
        (b"", [], "holds no prompt"),
        (b"\xef\xbb\xbf \r\n\r\n", [], "holds no prompt"),
        ("prompt".encode("utf-16"), [], "is not UTF-8 (byte 0 cannot be read)"),
        (b"one\nbell \x07\n", [], "line 2 of"),
        (b"one\ntwo\n", ["--n-calib", "3"], "--n-calib asks for 3 prompts, but"),
        (b"one\n", ["--n-calib", "0"], "--n-calib must be at least 1"),
        (b"one\n", ["--labels", "3"], "--labels goes with classes, but PixArtTransformer2DModel is conditioned on"),
        (b"one\n", ["--guidance", "1", "--negative-prompt", "grey"], "a negative prompt is the other branch"),
        (b"one\n", ["--negative-prompt", "\x1b[2J"], "--negative-prompt holds the character"),
        (b"one\n", ["--window", "99"], "wider than"),
    ],
)
def test_bad_prompts_get_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, more: list[str], words: str
) -> None:
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    assert main(base(folder, tmp_path / "out", "--prompts", str(path), *more)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("error: ")] == error.splitlines()[-1:]
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_with_the_model_gets_one_sentence(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_pipeline().save_pretrained(tmp_path / "dit")
    small_pixart_pipeline().save_pretrained(tmp_path / "mute")
    output = tmp_path / "out" / "plan.json"
    for model, more, words in [
        ("dit", ["--prompts", str(prompts)], "--prompts goes with text, but DiTTransformer2DModel is conditioned on"),
        ("dit", ["--negative-prompt", "grey"], "--negative-prompt goes with text"),
        ("mute", [], "this PixArtSigmaPipeline has no text_encoder and no tokenizer, so it cannot encode prompts"),
    ]:
        assert main(base(tmp_path / model, output, *more)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1
    output.parent.mkdir()
    output.write_text("a plan from elsewhere")
    assert main(base(tmp_path / "mute", output)) == 2
    assert "was not written by a calibration" in capsys.readouterr().err and output.read_text().startswith("a plan")


def test_files_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffein  grünes\tHaus\r\n\r\n  👩‍🚀 \r\nlast".encode())
    assert read_prompts(path) == ("ein grünes Haus", "👩‍🚀", "last")
    path.write_bytes(
        "\ufeffone\n\ufefftwo\n\u200b\n \u200d\u200c\nso\u00adft\nمی\u200cخواهم".encode()
    )  # joined, unseen
    assert read_prompts(path) == ("one", "two", "soft", "می\u200cخواهم")
    for letter in ("\u202e", "\u2066", "\u061c", "\U000e0041"):
        path.write_text(f"a cat\nabc{letter}def", encoding="utf-8")
        with pytest.raises(CalibrationError, match=r"line 2 of .* holds the character .*, which is no text"):
            read_prompts(path)
    path.write_bytes("\ufeffein  grünes\tHaus\r\n\r\n  👩\u200d🚀 \r\nlast".encode())
    assert choose_prompts(path, 2) == ("ein grünes Haus", "👩‍🚀") and len(choose_prompts(path, None)) == 3
    with pytest.raises(CalibrationError, match="the list that comes with this package holds 12"):
        choose_prompts(None, 13)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_prompts(tmp_path)
