"""Two runs compared image by image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs_for_tests import noisy, pictures, write_run
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ditfastattn.errors import DitFastAttnError
from eval.cli import main as eval_main
from eval.runs import Run, RunError
from eval.similarity import compare, spread
from eval.similarity_picture import chosen


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).double()


@pytest.mark.parametrize("npz", [False, True])
def test_each_image_is_measured_as_torchmetrics_measures_it_alone(tmp_path: Path, npz: bool) -> None:
    full = pictures(5)
    drawn = noisy(full, 9)
    found = compare(
        Run.open(write_run(tmp_path / "a", drawn, npz=npz)), Run.open(write_run(tmp_path / "b", full)), batch=2
    )
    for i in range(5):
        ours, theirs = as_tensor(drawn[i : i + 1]), as_tensor(full[i : i + 1])
        assert found.values["psnr"][i] == pytest.approx(peak_signal_noise_ratio(ours, theirs, 255.0).item(), abs=1e-4)
        expected = structural_similarity_index_measure(ours, theirs, data_range=255.0)
        assert found.values["ssim"][i] == pytest.approx(float(expected), abs=1e-4)
    pooled = peak_signal_noise_ratio(as_tensor(drawn), as_tensor(full), 255.0).item()
    assert found.pooled_psnr == pytest.approx(pooled, abs=1e-4)
    assert "the latents were not saved" in found.notes[0]


def test_images_are_paired_by_index(tmp_path: Path) -> None:
    full = pictures(6)
    a = Run.open(write_run(tmp_path / "a", full))
    same = compare(a, Run.open(write_run(tmp_path / "b", full)))
    assert same.equal == 6 and same.summary()["psnr"]["median"] is None and same.pooled_psnr == np.inf
    turned = compare(a, Run.open(write_run(tmp_path / "c", np.roll(full, 1, axis=0))))
    assert turned.equal == 0 and turned.pooled_psnr < 20


def test_more_noise_is_less_similar(tmp_path: Path) -> None:
    full = pictures(4)
    b = Run.open(write_run(tmp_path / "full", full))
    found = [compare(Run.open(write_run(tmp_path / str(s), noisy(full, s))), b).summary() for s in (2, 8, 32)]
    for measure in ("psnr", "ssim"):
        means = [summary[measure]["mean"] for summary in found]
        assert means == sorted(means, reverse=True)


def test_the_spread_is_numpys_and_survives_equal_images() -> None:
    values = np.random.default_rng(0).normal(size=101)
    found = spread(values)
    expected = [values.mean(), np.median(values), *np.percentile(values, [5, 95])]
    assert [found[key] for key in ("mean", "median", "p5", "p95")] == pytest.approx(expected)
    assert spread(np.array([1.0, 2.0, np.inf])) == {"mean": None, "median": 2.0, "p5": 1.0, "p95": 2.0}
    assert spread(np.full(3, np.inf))["p5"] is None


def test_latents_are_compared_where_both_runs_have_them(tmp_path: Path) -> None:
    full = pictures(3)
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(3, 4, 8, 8)).astype(np.float32)
    runs = []
    for name, factor in (("a", 1.25), ("b", 1.0)):
        run = write_run(tmp_path / name, full)
        (run / "latents").mkdir()
        for i in range(3):
            np.save(run / "latents" / f"{i:06d}.npy", latents[i] * factor)
        runs.append(Run.open(run))
    found = compare(*runs)
    assert found.values["latent_rel_l2"] == pytest.approx([0.25] * 3, rel=1e-6)
    assert not found.notes


def test_runs_of_other_noise_are_refused_with_every_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a", pictures(3))
    other = {"seed": 5, "labels": [0, 7, 2], "steps": 9, "sampler": {"class_name": "DDIM"}}
    b = write_run(tmp_path / "b", pictures(3), **other)
    assert eval_main(["similarity", str(a), str(b)]) == 2
    said = capsys.readouterr().err
    for line in ("seed: 0 and 5", "labels: 1 and 7 at 1", "steps: 4 and 9", 'class_name "DPM" and "DDIM"'):
        assert line in said
    assert not (a / "similarity.json").exists()
    fewer = Run.open(write_run(tmp_path / "c", pictures(2)))
    with pytest.raises(RunError, match="n: 3 and 2"):
        compare(Run.open(a), fewer)
    small = Run.open(write_run(tmp_path / "d", pictures(3, size=32)))
    with pytest.raises(RunError, match="64x64 and 32x32"):
        compare(Run.open(a), small)


def test_runs_of_other_steps_are_compared_and_named_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path / "a", noisy(pictures(3), 5), steps=2)
    b = write_run(tmp_path / "b", pictures(3))
    assert eval_main(["similarity", str(a), str(b), "--lpips", "none"]) == 0
    assert "of 2 steps and 4" in capsys.readouterr().out
    found = json.loads((a / "similarity.json").read_text())
    assert (found["a"], found["b"]) == ("a (2 steps)", "b (4 steps)")


def test_folders_that_are_no_finished_run_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no folder"):
        Run.open(tmp_path / "none")
    with pytest.raises(RunError, match=r"no run\.json"):
        Run.open(tmp_path)
    run = write_run(tmp_path / "run", pictures(2))
    (run / "images" / "000001.png").write_bytes(b"not a picture")
    with pytest.raises(RunError, match="no readable image"):
        list(Run.open(run).batches(2))
    (run / "images" / "000001.png").unlink()
    with pytest.raises(RunError, match="1 of its 2 images"):
        Run.open(run)
    (run / "run.json").write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        Run.open(run)
    wrong = write_run(tmp_path / "wrong", pictures(2), npz=True)
    np.savez(wrong / "samples.npz", images=pictures(2))
    with pytest.raises(DitFastAttnError, match="no array arr_0"):
        Run.open(wrong)


def test_the_command_writes_numbers_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = pictures(12)
    drawn = np.stack([noisy(image[None], 1 + 3 * i)[0] for i, image in enumerate(full)])
    a, b = write_run(tmp_path / "D2", drawn), write_run(tmp_path / "full", full)
    assert eval_main(["similarity", str(a), str(b), "--lpips", "none", "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "similarity.json").read_text())
    assert result["n"] == 12 and result["lpips"] is None and len(result["images"]) == 12
    values = [image["psnr"] for image in result["images"]]
    assert values == sorted(values, reverse=True)  # noise grows with the index
    assert result["summary"]["psnr"]["p5"] < result["summary"]["psnr"]["median"] < result["summary"]["psnr"]["p95"]
    assert (tmp_path / "out" / "similarity.png").read_bytes().startswith(b"\x89PNG")
    assert "worst 5 %" in capsys.readouterr().out


def test_the_picture_shows_best_median_and_worst() -> None:
    psnr = np.array([30.0, 10, 50, 20, 40, 25, 45, 15, 35])
    assert chosen(psnr, each=2) == [("best", [2, 6]), ("median", [8, 0]), ("worst", [7, 1])]
    assert chosen(psnr[:2]) == [("best", [0]), ("worst", [1])]
    assert chosen(psnr[:1]) == [("best", [0])]
