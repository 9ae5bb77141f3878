"""eval sample: exactly the images asked for, each from (seed, index), in a folder of one run."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sampled import STEPS, Command, contents, pixels, record
from small_models import full_plan as small_plan
from small_models import label_denoiser, random_plan, small_pipeline

import ditfastattn
from ditfastattn.decode import decode
from ditfastattn.models import adapt
from ditfastattn.sampling import sample_latents
from eval import sample_files
from eval.sample_batches import Batches, Labels
from plans import Plan, load, make, save


def test_exactly_n_images_with_what_made_them(run: Command) -> None:
    out = run("run", "--latents", "--seed", "3", "--guidance", "2.5")
    names = {f"images/{i:06d}.png" for i in range(5)} | {f"latents/{i:06d}.npy" for i in range(5)}
    assert contents(out).keys() == names | {"labels.npy"}
    made = record(out)
    expected = {"n": 5, "seed": 3, "sampler": "dpm", "steps": STEPS, "guidance": 2.5, "labels": "random", "plan": None}
    expected |= {"dtype": "float32", "kernel": None, "compile": False, "graphs": False, "batch": 2, "threads": 1}
    assert expected.items() <= made.items()
    assert {"weights", "device", "versions", "command", "model"} <= made.keys() and made["finished"]
    throughput = made["throughput"]
    assert isinstance(throughput, dict) and throughput["images"] == 5 and throughput["images_per_s"] > 0


def test_an_image_is_its_noise_label_and_rounding(run: Command, model: Path) -> None:
    """Image 3 from the project's own parts, in the batch where it stands: (2, 3)."""
    out = run("run", "--latents", "--seed", "7")
    pipe = ditfastattn.load_pipeline(model)
    labels = [int(label) for label in np.load(out / "labels.npy")[2:4]]
    latents = sample_latents(label_denoiser(pipe, labels, 4.0), pipe.scheduler, STEPS, 7, (2, 3))
    assert np.array_equal(np.load(out / "latents" / "000003.npy"), latents[1].numpy())
    assert np.array_equal(pixels(out, 3), decode(pipe.vae, latents)[1].numpy())


def test_no_image_depends_on_n_and_none_but_in_rounding_on_the_batch(run: Command) -> None:
    five, eight = run("five", "--latents"), run("eight", "--latents", n=8)
    assert (contents(five).items() - contents(eight).items()) == {("labels.npy", (five / "labels.npy").read_bytes())}
    three = run("three", "--latents", "--batch", "3")
    assert np.array_equal(np.load(five / "labels.npy"), np.load(three / "labels.npy"))
    for index in range(5):
        ours, theirs = (np.load(folder / "latents" / f"{index:06d}.npy") for folder in (five, three))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    other = run("other", "--seed", "1")
    assert not np.array_equal(pixels(five, 0), pixels(other, 0))


def test_a_plan_is_followed_with_its_own_sampler_steps_and_guidance(run: Command, model: Path, tmp_path: Path) -> None:
    pipe = small_pipeline(sampler="ddim")
    plan = random_plan(pipe, steps=6, guidance_scale=2.0)
    save(plan, tmp_path / "plan.json")
    out = run("run", "--plan", str(tmp_path / "plan.json"), "--latents")
    made = record(out)
    assert (made["sampler"], made["steps"], made["guidance"], made["kernel"]) == ("ddim", 6, 2.0, "sdpa")
    assert made["plan"] == json.loads((tmp_path / "plan.json").read_text())["digest"]
    assert made["attention_macs"] < 100  # type: ignore[operator]
    assert load(out / "plan.json") == plan
    labels = [int(label) for label in np.load(out / "labels.npy")[:2]]
    with ditfastattn.apply(pipe.transformer, plan):
        latents = sample_latents(label_denoiser(pipe, labels, 2.0), pipe.scheduler, 6, 0, (0, 1))
    assert np.array_equal(np.load(out / "latents" / "000001.npy"), latents[1].numpy())


@pytest.mark.parametrize("sampler", ["ddpm", "iddpm", "heun"])
def test_every_sampler_runs_under_a_session(run: Command, model: Path, tmp_path: Path, sampler: str) -> None:
    """The session is given the sampler that runs, so it checks the guidance of every step."""
    save(random_plan(ditfastattn.load_pipeline(model, sampler=sampler), steps=4), tmp_path / "plan.json")
    assert record(run("run", "--plan", str(tmp_path / "plan.json"), n=2))["sampler"] == sampler


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("made", [make.fora, partial(make.taylorseer, order=1)])
def test_a_plan_with_mlps_is_followed(
    run: Command, tmp_path: Path, made: Callable[..., Plan], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    pipe = small_pipeline()
    plan = made(small_plan(pipe, steps=5), 2, shape=adapt(pipe.transformer).mlp)
    assert "mlp" in plan.sites
    save(plan, tmp_path / "plan.json")
    out = run("run", "--plan", str(tmp_path / "plan.json"), "--latents", *(["--compile"] if compiled else []), n=2)
    labels = [int(label) for label in np.load(out / "labels.npy")]
    with ditfastattn.apply(pipe.transformer, plan):
        latents = sample_latents(label_denoiser(pipe, labels, 4.0), pipe.scheduler, 5, 0, (0, 1))
    np.testing.assert_allclose(np.load(out / "latents" / "000001.npy"), latents[1].numpy(), rtol=1e-3, atol=1e-3)


def test_compile_follows_the_all_full_plan(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = ditfastattn.apply

    def apply(pipe: object, plan: object, **options: object) -> object:
        asked.append(options)
        return real(pipe, plan)  # type: ignore[arg-type]

    monkeypatch.setattr(ditfastattn, "apply", apply)
    compiled, plain = run("compiled", "--compile"), run("plain")
    assert asked == [{"kernel": "sdpa", "compile": True, "graphs": False}]
    assert contents(compiled).items() >= contents(plain).items()


def test_an_npz_holds_the_same_pixels_and_its_bytes_depend_on_them_alone(run: Command) -> None:
    png, npz = run("png"), run("npz", "--format", "npz")
    with np.load(npz / "samples.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        images = archive["arr_0"]
    assert images.dtype == np.uint8 and images.shape == (5, 16, 16, 3)
    assert all(np.array_equal(images[i], pixels(png, i)) for i in range(5))
    assert contents(npz).keys() == {"samples.npz", "labels.npy"}  # the parts are gone
    assert contents(run("again", "--format", "npz")) == contents(npz)


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_resuming_mends_what_is_missing_torn_or_left_over(
    run: Command, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(run("whole", "--format", kind, "--latents"))
    real, written = sample_files.write_array, []

    def stop(path: Path, array: np.ndarray) -> None:
        written.append(path)
        if len(written) == 5:
            raise KeyboardInterrupt
        real(path, array)

    monkeypatch.setattr(sample_files, "write_array", stop)
    out = run("torn", "--format", kind, "--latents", status=130)
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(sample_files, "write_array", real)
    folder = out / ("images" if kind == "png" else "parts")
    (first,) = [file for file in folder.iterdir() if file.stem == "000000"]
    first.write_bytes(first.read_bytes()[:-9])  # a crash of the machine
    (folder / f".{first.name}.4711.tmp").write_bytes(b"half")
    assert record(out)["finished"] is None
    run("torn", "--format", kind, "--latents")
    assert contents(out) == whole and record(out)["finished"]
    before = (out / "run.json").stat().st_mtime_ns
    run("torn", "--format", kind, "--latents")  # nothing is left to do
    assert (out / "run.json").stat().st_mtime_ns == before and contents(out) == whole


def test_a_plan_leaves_nothing_from_batch_to_batch(run: Command, tmp_path: Path) -> None:
    """Image 2 is drawn again in a process that has drawn no other."""
    save(random_plan(small_pipeline(), steps=6), tmp_path / "plan.json")
    out = run("run", "--plan", str(tmp_path / "plan.json"))
    whole = contents(out)
    (out / "images" / "000002.png").unlink()
    run("run", "--plan", str(tmp_path / "plan.json"))
    assert contents(out) == whole
    throughput = record(out)["throughput"]
    assert isinstance(throughput, dict) and throughput["images"] == 2  # the batch


def test_balanced_labels_differ_by_one_at_most_wherever_one_stops() -> None:
    pool = list(range(100, 107))
    labels = Labels(pool, "balanced", seed=5)
    drawn = [labels[i] for i in range(40)]
    for stop in range(1, 41):
        counts = Counter(drawn[:stop])
        assert max(counts.values()) - min(counts.get(label, 0) for label in pool) <= 1
    assert drawn != [Labels(pool, "balanced", seed=6)[i] for i in range(40)]


def test_random_labels_cover_the_pool_evenly_and_depend_on_seed_and_index() -> None:
    labels = Labels(range(10), "random", seed=2**40)
    drawn = [labels[i] for i in range(2000)]
    assert drawn[:5] == [Labels(range(10), "random", seed=2**40)[i] for i in range(5)]
    assert all(140 < count < 260 for count in Counter(drawn).values()) and len(set(drawn)) == 10
    assert drawn != [Labels(range(10), "random", seed=1)[i] for i in range(2000)]


def test_batches_cover_n_once() -> None:
    batches = Batches(7, 3)
    assert [list(batches.kept(k)) for k in range(len(batches))] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all(len(batches.drawn(k)) == 3 for k in range(len(batches)))


def test_torch_threads_are_one_on_a_cpu(run: Command) -> None:
    torch.set_num_threads(2)
    try:
        run()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
