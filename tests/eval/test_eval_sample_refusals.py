"""eval sample, badly asked: one sentence, and no image of another run is touched."""

import os
from pathlib import Path

import pytest
from PIL import Image
from sampled import STEPS, Command, contents
from small_models import full_plan as small_plan
from small_models import random_plan, small_pipeline
from small_pixart import small_pixart_pipeline

from eval.sample_folder import held
from plans import MlpShape, make, save


def test_a_plan_with_mlps_of_another_width_is_refused(
    run: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = MlpShape(layers=4, hidden=77)
    save(make.fora(small_plan(small_pipeline(), steps=5), 2, shape=wider), tmp_path / "plan.json")
    run("run", "--plan", str(tmp_path / "plan.json"), status=2)
    assert "hidden width: the plan has 77, this model 192" in capsys.readouterr().err


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.count("error:") == 1 and "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--n", "0"], "--n must be at least 1, got 0"),
        (["--n", "many"], "invalid int value: 'many'"),
        (["--batch", "-1"], "--batch must be at least 1"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--guidance", "0.5"], "--guidance must be 1"),
        (["--guidance", "nan"], "--guidance must be 1"),
        (["--seed", "-1"], "seed must be a whole number"),
        (["--format", "jpeg"], "invalid choice: 'jpeg'"),
        (["--labels", "odd"], "invalid choice: 'odd'"),
        (["--device", "tpu9"], "no device 'tpu9'"),
        (["--kernel", "flash3"], "kernel 'flash3' cannot take"),
        (["--model", "/nowhere"], "/nowhere does not exist"),
        (["--plan", "/nowhere.json"], "/nowhere.json does not exist"),
        (["--steps", "2000"], "2000 steps are more than the 1000 timesteps"),
    ],
)
def test_odd_options_are_one_sentence_and_leave_no_images(
    run: Command, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    out = run("run", *more, status=2)
    assert words in one_sentence(capsys)
    assert not out.exists() or not list(out.iterdir())


def test_a_folder_of_another_run_is_left_alone_with_every_difference(
    run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("run")
    before = contents(out)
    run("run", "--seed", "1", "--steps", "5", "--labels", "balanced", n=6, status=2)
    told = one_sentence(capsys)
    for line in ("n: 5, now 6", "seed: 0, now 1", "labels: random, now balanced", "steps: 4, now 5"):
        assert f"- {line}\n" in told
    assert "batch" not in told and contents(out) == before


def test_other_weights_under_the_same_name_are_another_run(
    run: Command, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("run")
    small_pipeline(seed=1).save_pretrained(tmp_path / "other")
    run("run", "--model", str(tmp_path / "other"), status=2)
    assert "weights: sha256:" in one_sentence(capsys) and out.exists()


@pytest.mark.parametrize("name", ["holiday.jpg", "images"])
def test_a_folder_of_something_else(
    run: Command, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    run(status=2)
    assert f"holds {name} but no run.json" in one_sentence(capsys)


@pytest.mark.parametrize("text", ["{", "[]", '{"n": 5}', "\udcff"])
def test_a_record_that_is_not_ours(run: Command, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    run(status=2)
    assert "not the record of a run" in one_sentence(capsys)


def test_strangers_among_the_images(run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    out = run()
    (out / "images" / "000005.png").write_bytes(b"of a longer run")
    run(status=2)
    assert "000005.png, not of this run's 5 images" in one_sentence(capsys)


def test_out_is_a_file(run: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("")
    run(status=2)
    assert "is a file; name a folder" in one_sentence(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(run: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    run(status=2)
    assert "may not be written" in one_sentence(capsys)


def test_a_full_disk(run: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, path: Path, format: str) -> None:
        Path(path).write_bytes(b"\x89PNG, the first half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    out = run(status=2)
    assert "000000.png cannot be written (No space left on device)" in one_sentence(capsys)
    assert list((out / "images").iterdir()) == []
    monkeypatch.undo()
    run()
    assert len(list((out / "images").iterdir())) == 5


def test_two_commands_in_one_folder_at_once(run: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path / "run"):
        run(status=2)
    assert "another process is sampling into" in one_sentence(capsys)
    run()


def test_a_foreign_plan(run: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(random_plan(small_pipeline(layers=3), steps=STEPS), tmp_path / "plan.json")
    out = run("run", "--plan", str(tmp_path / "plan.json"), "--steps", "6", "--guidance", "3", status=2)
    told = one_sentence(capsys)
    assert "this model 4" in told and "guidance scale" in told and "steps: the plan has 4, this sampler 6" in told
    assert list(out.iterdir()) == []


def test_a_model_that_takes_prompts(
    run: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.sample.load_pipeline", lambda *_, **__: small_pixart_pipeline())
    run(status=2)
    assert "conditioned on prompts" in one_sentence(capsys)


def test_a_rank_that_would_draw_other_images_is_found() -> None:
    from eval.sample import _check_equal
    from eval.sample_settings import SampleError

    with pytest.raises(SampleError, match=r"rank 1 would not draw what rank 0 draws(.|\n)*device: A, now B"):
        _check_equal([{"device": "A", "n": 1}, {"device": "B", "n": 1}])
