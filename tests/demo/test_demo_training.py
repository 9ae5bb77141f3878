from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from safetensors.torch import load_file

from ditfastattn.demo import train, vae
from ditfastattn.demo.arguments import parse
from ditfastattn.demo.classes import CLASSES
from ditfastattn.demo.loop import Recipe, Run
from ditfastattn.demo.model import NULL_CLASS, build_transformer

SMALL = "--device cpu --drawings 1 --vae-iterations 3 --vae-width 16 --iterations 4 --batch 4 --warmup 2"
SMALL += " --layers 1 --heads 1 --head-dim 16 --save-every 100 --sample-steps 1"


def run(art: Path, out: Path, extra: str = "--each 0") -> dict[str, torch.Tensor]:
    train.main(["--art", str(art), "--out", str(out), *SMALL.split(), *extra.split()])
    return load_file(out / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def whole(art: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("resvg_py")
    for style in ("noto-v1", "fxemoji", "fluent-emoji-flat", "fluent-emoji", "emojione"):
        folder = art / "@iconify-json" / style
        folder.mkdir(exist_ok=True)
        (folder / "icons.json").write_text(json.dumps({"icons": {}}))
    out = tmp_path_factory.mktemp("whole")
    run(art, out, "--each 1")
    return out


def test_training_writes_a_pipeline_and_its_record(whole: Path) -> None:
    report = json.loads((whole / "training.json").read_text())
    assert report["finished"] and report["iteration"] == 4
    assert report["bytes"] == sum(f.stat().st_size for f in (whole / "pipeline").rglob("*") if f.is_file())
    assert np.isfinite(report["curve"][-1]["simple"])
    assert (whole / "samples.png").stat().st_size and (whole / "curve.png").stat().st_size


def test_a_paused_run_goes_on_to_the_same_weights(whole: Path, art: Path, tmp_path: Path) -> None:
    expected = load_file(whole / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
    paused = run(art, tmp_path, "--each 0 --seconds 0")
    assert json.loads((tmp_path / "training.json").read_text())["iteration"] == 1
    assert any((paused[k] != expected[k]).any() for k in expected)
    resumed = run(art, tmp_path)
    assert resumed.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(resumed[name], expected[name], rtol=0, atol=0, msg=name)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exported_folder_loads_and_samples(whole: Path, dtype: torch.dtype) -> None:
    pipe = DiTPipeline.from_pretrained(whole / "pipeline", torch_dtype=dtype)
    assert [pipe.labels[name] for name in CLASSES] == list(range(len(CLASSES)))
    pipe.set_progress_bar_config(disable=True)
    images = pipe([0, 5], generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 64, 64, 3) and np.isfinite(images).all()


def test_export_keeps_the_rows_that_are_used(whole: Path) -> None:
    weights = load_file(whole / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
    table = weights["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    assert table.shape[0] == NULL_CLASS + 1
    assert table[: len(CLASSES)].any(1).all() and table[NULL_CLASS].any()
    assert not table[len(CLASSES) : NULL_CLASS].any()


def test_transformer_starts_as_dit_does() -> None:
    torch.manual_seed(0)
    model = build_transformer(layers=2, heads=1, head_dim=16, sample_size=8)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    assert not model(x, timestep=t, class_labels=torch.tensor([1, NULL_CLASS])).sample.any()
    # With modulation at zero a block hands on what it is given.
    hidden = model.pos_embed(x)
    torch.testing.assert_close(model.transformer_blocks[0](hidden, timestep=t, class_labels=t), hidden)
    assert not model.training


def test_rate_warms_up_stays_and_falls() -> None:
    recipe = Recipe(iterations=100, lr=1.0, warmup=10, decay=0.2)
    rates = [recipe.rate(i) for i in range(100)]
    assert rates[0] == 0.1 and rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5) and rates[99] == pytest.approx(0.05)
    # A longer total leaves the start alone, so it can be settled late.
    assert [Recipe(iterations=200, lr=1.0, warmup=10).rate(i) for i in range(80)] == rates[:80]


def test_rate_falls_by_time_where_that_ends_first() -> None:
    recipe = Recipe(iterations=1000, lr=1.0, warmup=1, decay=0.2)
    assert [recipe.rate(10, spent) for spent in (0.0, 0.8, 0.95, 1.0, 1.1)] == pytest.approx([1, 1, 0.25, 0, 0])
    assert recipe.rate(990, 0.0) == recipe.rate(990, 0.1) == pytest.approx(0.05)


def test_a_deadline_ends_the_run_and_what_there_is_is_exported(whole: Path, art: Path, tmp_path: Path) -> None:
    weights = run(art, tmp_path, "--each 0 --seconds 0")
    late = run(art, tmp_path, "--each 0 --deadline 0")
    report = json.loads((tmp_path / "training.json").read_text())
    assert report["finished"] and report["iteration"] == 1
    assert all(torch.equal(late[name], weights[name]) for name in weights)


def test_a_run_starts_from_a_trained_pipeline(whole: Path, art: Path, tmp_path: Path) -> None:
    source = whole / "pipeline"
    run(art, tmp_path, f"--start {source} --patch 1 --lr 0 --each 0")
    pipe, old = (DiTPipeline.from_pretrained(folder / "pipeline") for folder in (tmp_path, whole))
    assert pipe.transformer.config.patch_size == 1
    new, given = ((p.vae.state_dict(), p.transformer.transformer_blocks.state_dict()) for p in (pipe, old))
    assert all(
        torch.equal(ours[name], theirs[name]) for ours, theirs in zip(new, given, strict=True) for name in theirs
    )
    assert not (tmp_path / "vae.pt").exists()
    assert "held_out_psnr_db" in json.loads((tmp_path / "training.json").read_text())["autoencoder"]


def test_a_preset_gives_way_to_options() -> None:
    given = ["--art", "a", "--out", "b", "--batch", "7"]
    assert (parse(given).patch, parse(given).start, parse(given).iterations) == (2, None, Recipe.iterations)
    long = parse([*given, "--preset", "long"])
    assert (long.patch, long.start, long.batch) == (1, "demo", 7)


def test_standardising_leaves_reconstructions_alone() -> None:
    torch.manual_seed(0)
    model = vae.build_vae((16, 32), size=16).eval().requires_grad_(False)
    images = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8)
    before = vae.reconstruct(model, images)
    vae.standardise(model, images)
    latents = torch.cat(list(vae.encode(model, images)))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.var((0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)
    assert (vae.reconstruct(model, images).int() - before.int()).abs().max() <= 1


def test_psnr() -> None:
    a = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    b = torch.full_like(a, 255)
    assert vae.psnr(a, b) == pytest.approx(0)
    assert vae.psnr(a, a) == pytest.approx(100)


def test_loading_a_pipeline_needs_no_code_of_ours(whole: Path) -> None:
    index = json.loads((whole / "pipeline" / "model_index.json").read_text())
    modules = {name: value[0] for name, value in index.items() if isinstance(value, list)}
    assert modules == {"scheduler": "diffusers", "transformer": "diffusers", "vae": "diffusers"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert type(DiTPipeline.from_pretrained(whole / "pipeline")).__module__.startswith("diffusers.")


def test_the_best_moving_average_is_kept_and_survives_a_checkpoint(tmp_path: Path) -> None:
    started = Run.start(torch.nn.Linear(2, 2), Recipe())
    kept = {}
    for loss in (0.3, 0.2, 0.4):
        torch.nn.init.constant_(started.ema.weight, loss)
        started.held_out(loss)
        started.curve.append({"held_out": loss})
        if loss == 0.2:
            kept = {name: value.clone() for name, value in started.ema.state_dict().items()}
    started.save(tmp_path / "run.pt")
    again = Run.start(torch.nn.Linear(2, 2), Recipe())
    again.load(tmp_path / "run.pt")
    again.take_best()
    assert all(torch.equal(again.ema.state_dict()[name], value) for name, value in kept.items())
