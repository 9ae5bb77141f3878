"""eval sample of a text-to-image model: image i is of the i-th prompt, and CLIP can read which."""

import json
from pathlib import Path

import numpy as np
import pytest
from runs_for_tests import pictures, write_run
from sampled import Command, ended_in_the_second_batch, record
from small_models import random_plan, small_pipeline
from small_pixart import small_pixart_pipeline, small_text_to_image
from thread_ranks import on_ranks

import ditfastattn
from ditfastattn.condition import FromPrompts
from ditfastattn.decode import decode
from ditfastattn.models import adapt
from ditfastattn.sampling import Denoiser, sample_latents
from eval import sample
from eval.cli import main
from eval.clip import captions_of
from eval.runs import Run, RunError, noise_differences
from eval.sample_subjects import read_texts
from plans import save

TEXTS = ("a red fox", "two boats", "a goat")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "painter"
    small_text_to_image().save_pretrained(path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture
def draw(model: Path, prompts: Path, tmp_path: Path) -> Command:
    def command(out: str = "run", *more: str, n: int = 5, status: int = 0) -> Path:
        given = [] if "--prompts" in more else ["--prompts", str(prompts)]
        steps = [] if "--plan" in more else ["--steps", "3"]
        base = ["--model", str(model), "--device", "cpu", "--batch", "2", "--n", str(n), "--out", str(tmp_path / out)]
        assert main(["sample", *base, *steps, *given, *more]) == status
        return tmp_path / out

    return command


def images(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "images").iterdir()}


def test_an_image_is_its_prompt_noise_and_rounding(draw: Command, model: Path) -> None:
    """Image 3 from the project's own parts, in the batch where it stands: (2, 3); its prompt is the first again."""
    out = draw("run", "--latents", "--seed", "7", "--negative-prompt", "grey")
    pipe = ditfastattn.load_pipeline(model)
    adapter = adapt(pipe.transformer)
    assert isinstance(adapter, FromPrompts)
    denoiser = Denoiser(pipe.transformer, adapter.condition(pipe, [TEXTS[2], TEXTS[0]], "grey"), 4.5)
    latents = sample_latents(denoiser, pipe.scheduler, 3, 7, (2, 3))
    assert np.array_equal(np.load(out / "latents" / "000003.npy"), latents[1].numpy())
    assert np.array_equal(Run.open(out).image(3), decode(pipe.vae, latents)[1].numpy())
    made = record(out)
    assert made["guidance"] == 4.5 and made["negative_prompt"] == "grey" and made["captions"] == [*TEXTS, *TEXTS[:2]]
    assert "labels" not in made and not (out / "labels.npy").exists()


def test_no_image_depends_on_n_and_a_kill_changes_none(draw: Command, capsys: pytest.CaptureFixture[str]) -> None:
    whole, few = draw("whole"), draw("few", n=4)
    assert images(few).items() <= images(whole).items()
    with ended_in_the_second_batch():
        draw("killed", status=130)
    assert images(draw("killed")) == images(whole)
    draw("killed", "--negative-prompt", "grey", status=2)
    assert "negative_prompt: , now grey" in capsys.readouterr().err


def test_two_ranks_draw_what_one_draws(
    draw: Command, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = draw("alone")
    pipes = [ditfastattn.load_pipeline(model) for _ in range(2)]  # transformers cannot load in two threads at once
    monkeypatch.setattr(sample, "load_pipeline", lambda *_, **__: pipes.pop())
    command = ["--model", str(model), "--device", "cpu", "--batch", "2", "--n", "5", "--steps", "3", "--prompts",
               str(prompts), "--out", str(tmp_path / "two")]  # fmt: skip
    on_ranks(2, lambda ranks: sample.sample(sample.parser().parse_args(command), "", ranks))
    assert images(tmp_path / "two") == images(alone)


def test_a_plan_is_followed_in_every_batch(draw: Command, model: Path, tmp_path: Path) -> None:
    pipe = ditfastattn.load_pipeline(model)
    save(random_plan(pipe, steps=4, guidance_scale=2.0), tmp_path / "plan.json")
    full, planned = draw("full", "--guidance", "2"), draw("planned", "--plan", str(tmp_path / "plan.json"))
    assert record(planned)["guidance"] == 2.0 and images(planned) != images(full)
    save(random_plan(small_pipeline(), steps=4), tmp_path / "foreign.json")
    draw("foreign", "--plan", str(tmp_path / "foreign.json"), status=2)


def test_cocos_captions_keep_their_ids(draw: Command, tmp_path: Path) -> None:
    rows = [{"id": 10 * i, "image_id": 7, "caption": f"{text}\n"} for i, text in enumerate(TEXTS)]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": [], "annotations": rows}))
    assert read_texts(path) == (TEXTS, (0, 10, 20))
    run = Run.open(draw("run", "--prompts", str(path), n=4))
    assert run.record["caption_ids"] == [0, 10, 20, 0]
    assert captions_of(run, None) == captions_of(run, {0: TEXTS[0], 10: TEXTS[1], 20: TEXTS[2]}) == [*TEXTS, TEXTS[0]]


def test_captions_of_a_run_that_did_not_record_them(tmp_path: Path) -> None:
    def run(name: str, **fields: object) -> Run:
        return Run.open(write_run(tmp_path / name, pictures(2), **fields))

    with pytest.raises(RunError, match="not made from captions"):
        captions_of(run("labels"), None)
    with pytest.raises(RunError, match="records ids of captions: name the file they are in with --captions"):
        captions_of(run("ids", caption_ids=[1, 2]), None)
    with pytest.raises(RunError, match="1 captions for 2 images"):
        captions_of(run("few", captions=["one"]), None)
    ours, theirs = run("a", prompts="sha256:1", negative_prompt=""), run("b", prompts="sha256:2", negative_prompt="")
    assert [line.split(":")[0] for line in noise_differences(ours, theirs)] == ["prompts"]


def test_bad_input_gets_one_sentence(
    draw: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "labels.json").write_text('{"annotations": [{"id": 1}]}')
    for more, words in [
        (["--prompts", str(tmp_path / "empty.txt")], "holds no prompt"),
        (["--prompts", str(tmp_path / "labels.json")], "is not COCO's caption file"),
        (["--labels", "balanced"], "--labels goes with classes"),
    ]:
        out = draw("bad", *more, status=2)
        error = capsys.readouterr().err.splitlines()
        assert error[-1].startswith("error: ") and words in error[-1] and not (out / "run.json").exists()
    for pipe, words in [(small_pixart_pipeline(), "cannot encode prompts"), (small_pipeline(), "--prompts goes with")]:
        monkeypatch.setattr(sample, "load_pipeline", lambda *_, pipe=pipe, **__: pipe)
        draw("bad", status=2)
        assert words in capsys.readouterr().err
