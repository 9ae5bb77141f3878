"""A small Open-Sora from training to a folder that every command takes, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from calibration.cli import main as calibration
from ditfastattn import load_pipeline
from ditfastattn.demo import train_clips, vae
from ditfastattn.demo.clip_pipeline import WORDS, build_stdit2, build_text_encoder, build_tokenizer
from ditfastattn.demo.clips import CAPTIONS, SUBJECTS, Stills
from ditfastattn.demo.denoise import held_out_loss
from ditfastattn.demo.export import export
from ditfastattn.demo.loop import Recipe, Run
from ditfastattn.demo.model import build_transformer
from ditfastattn.demo.train_clips import ClipLatents, Texts
from eval import demo_clips, readme
from plans import load

SMALL = "--device cpu --clips 6 --frames 2 --iterations 3 --batch 2 --warmup 2 --blocks 1"


def small_texts() -> Texts:
    generator = torch.Generator().manual_seed(0)
    return Texts(torch.randn(len(CAPTIONS), 1, WORDS, 8, generator=generator), torch.ones(len(CAPTIONS), WORDS))


def train(out: Path, stills: Path, images: Path) -> dict[str, torch.Tensor]:
    train_clips.main(["--stills", str(stills), "--out", str(out), "--start", str(images), *SMALL.split()])
    return load_file(out / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stills of two subjects, and a pipeline of images."""
    folder = tmp_path_factory.mktemp("parts")
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    Stills(images, np.array([0, 0, 0, 1, 1, 1]), np.array([False, False, True] * 2)).save(folder / "stills.npz")
    torch.manual_seed(0)
    export(folder / "images", build_transformer(2, 2, 12), vae.build_vae((8, 16)))
    return folder / "stills.npz", folder / "images"


@pytest.fixture(scope="module")
def trained(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clips")
    train(out, *parts)
    return out


def test_training_lowers_the_loss_of_clips_it_has_not_seen_this_noise_of() -> None:
    torch.manual_seed(0)
    model = build_stdit2(24, 2, 2, text_width=8)
    z = torch.randn(4, 4, 1, 1, 1).expand(4, 4, 3, 8, 8).contiguous()  # clips of one colour each
    data, texts = ClipLatents(z, torch.arange(4)), small_texts()
    recipe = Recipe(iterations=60, batch=8, lr=1e-2, warmup=5, ema=0.9)
    run = Run.start(model, recipe)
    measured = train_clips.predictor(texts, 3), z, data.captions
    before = held_out_loss(model, *measured)
    assert before == pytest.approx(1, abs=0.1)  # noise predicted as zero
    assert train_clips.train_clips(run, data, texts, recipe)
    assert held_out_loss(run.ema, *measured) < 0.6 * before
    assert all(np.isfinite(list(point.values())).all() for point in run.curve)


def test_dropped_captions_read_the_null_caption() -> None:
    model, texts, read = build_stdit2(24, 1, 2, text_width=8), small_texts(), []
    model.y_embedder.register_forward_pre_hook(lambda _, args: read.append(args[0].detach()))
    data = ClipLatents(torch.randn(4, 4, 1, 4, 4), torch.arange(4))
    recipe = Recipe(iterations=2, batch=40, drop_label=0.5)
    train_clips.train_clips(Run.start(model, recipe), data, texts, recipe)
    null = (read[0] == model.y_embedder.y_embedding).all((1, 2, 3))
    assert 8 < null.sum() < 32
    words = read[0][~null]
    assert all(any(torch.equal(row, text) for text in texts.embeds[:4]) for row in words)


def test_the_variance_is_trained_too() -> None:
    model, texts = build_stdit2(24, 1, 2, text_width=8), small_texts()
    data = ClipLatents(torch.randn(4, 4, 1, 4, 4), torch.arange(4))
    recipe = Recipe(iterations=3, batch=4, warmup=1)
    run = Run.start(model, recipe)
    train_clips.train_clips(run, data, texts, recipe)
    rows = run.model.final_layer.linear.weight.unflatten(0, (-1, 8))  # patches, channels
    assert rows[:, 4:].abs().sum((0, 2)).gt(0).all()
    assert {"simple", "bound"} <= run.curve[-1].keys()


def test_it_starts_as_nothing() -> None:
    torch.manual_seed(0)
    model = build_stdit2(24, 2, 2, text_width=8)
    x, text = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 1, WORDS, 8)
    assert not model(x, torch.tensor([3, 700]), text, **train_clips.told(x.device, 3)).any()
    assert not model.training


def test_every_caption_has_words_of_its_own() -> None:
    tokenizer = build_tokenizer()
    tokens = tokenizer(list(CAPTIONS))["input_ids"]
    assert max(map(len, tokens)) <= WORDS
    assert not any(tokenizer.unk_token_id in row for row in tokens)
    assert len({tuple(row) for row in tokens}) == len(CAPTIONS)
    torch.manual_seed(0)
    encoder = build_text_encoder(len(tokenizer))
    assert all(torch.equal(p, p.half().float()) for p in encoder.parameters())


def test_a_run_of_given_time_slows_down_and_ends_by_it() -> None:
    recipe = Recipe(iterations=1000, lr=1.0, warmup=1, decay=0.5)
    assert [recipe.rate(i, spent) for i, spent in ((10, 0), (10, 0.5), (10, 0.75), (750, 0), (10, 1.1))] == [
        1,
        1,
        pytest.approx(0.5),
        pytest.approx(0.5),
        0,
    ]
    assert recipe.ended(10, 1) and recipe.ended(1000, 0) and not recipe.ended(999, 0.99)


def test_training_writes_a_pipeline_that_loads_and_samples(trained: Path) -> None:
    report = json.loads((trained / "training.json").read_text())
    assert report["finished"] and report["iteration"] == 3 and (trained / "curve.png").stat().st_size
    assert report["bytes"] == sum(f.stat().st_size for f in (trained / "pipeline").rglob("*") if f.is_file())
    pipe = load_pipeline(trained / "pipeline")
    average = torch.load(trained / "stdit2.pt", weights_only=True)["ema"]
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor, average[name].half().float()), name
    frames = pipe(CAPTIONS[0], num_frames=2, height=64, width=64, num_inference_steps=2).frames
    assert frames.shape == (1, 2, 64, 64, 3) and np.isfinite(frames).all()


def test_a_finished_run_is_not_run_again(trained: Path, parts: tuple[Path, Path]) -> None:
    before = load_file(trained / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
    again = train(trained, *parts)
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_its_plans_measured(trained: Path, tmp_path: Path) -> None:
    given = "--threshold 0.02 0.1 --steps 3 --frames 2 --n-calib 1 --n 2 --device cpu"
    folders = ["--model", str(trained / "pipeline"), "--out", str(tmp_path / "new"), "--plans", str(tmp_path / "plans")]
    demo_clips.main([*folders, *given.split()])
    report = json.loads((tmp_path / "new" / "demo_clips.json").read_text())
    assert [row["threshold"] for row in report["rows"]] == [0.02, 0.1]
    assert not set(report["calibrated_on"]) & set(report["compared_on"])
    assert str(tmp_path) not in json.dumps(report)
    assert report["command"] == f"python -m eval demo-clips {given}"
    for row in report["rows"]:
        plan = load(tmp_path / "plans" / f"demo_clips-dpm3-{row['threshold']}.json")
        assert set(row["sites"]) == {"attn", "temporal"} == set(plan.sites)
        assert 100 / 3 - 0.01 <= row["attention_macs"] <= 100 and np.isfinite(row["latent_rel_l2"])
        assert (plan.model.tokens, plan.model.temporal.frames) == (256, 2)
    table = readme.demo_clips(str(tmp_path / "new" / "demo_clips.json"))
    assert f"| 0.02 | {report['rows'][0]['attention_macs']:.1f} % |" in table and report["command"] in table
    with Image.open(tmp_path / "new" / "demo_clips.png") as sheet:
        assert sheet.size == (96 + 2 * 64, 2 * (3 * 64 + 10) - 10)
    assert (tmp_path / "new" / "demo_clips_curve.png").stat().st_size


def test_captions_to_compare_on_are_never_those_calibrated_on() -> None:
    for a in range(1, len(SUBJECTS) + 1):
        for b in range(1, len(SUBJECTS) + 1):
            assert not set(demo_clips.captions(a, 0)) & set(demo_clips.captions(b, 3))
    with pytest.raises(ValueError, match="from 1 to 8"):
        demo_clips.captions(9, 0)


def test_the_folder_is_a_model_to_every_command(trained: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    prompts = trained / "pipeline" / "prompts.txt"
    options = "--n-calib 1 --video 2x64x64 --sampler dpm --steps 2 --threshold 0.05 --device cpu"
    given = ["--model", str(trained / "pipeline"), "--prompts", str(prompts), "--output", str(plan)]
    assert calibration([*given, *options.split()]) == 0
    assert load(plan).calibration.prompts == CAPTIONS[:1]
