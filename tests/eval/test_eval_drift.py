"""Losses at equal MACs and budgets tested, on a model that takes seconds."""

import json
from pathlib import Path

import pytest
import torch
from small_models import label_denoiser, random_plan, small_pipeline

import ditfastattn
from ditfastattn.errors import DitFastAttnError
from ditfastattn.sampling import sample_latents
from eval import drift, readme
from eval.drift_runs import final_latents, psnr


def test_between_the_nearest_rows() -> None:
    rows = [{"macs": m, "psnr": p} for m, p in ((90.0, 30.0), (60.0, 20.0), (80.0, 27.0), (100.0, None))]
    assert drift.at_macs(rows, 70) == 23.5 and drift.at_macs(rows, 80) == 27 and drift.at_macs(rows, 90) == 30
    assert drift.at_macs(rows, 95) is None and drift.at_macs(rows, 50) is None and drift.at_macs([], 70) is None


def test_latents_are_those_of_the_sampler_whatever_the_batch() -> None:
    pipe = small_pipeline()
    plan = random_plan(pipe, steps=4)
    with ditfastattn.apply(pipe.transformer, plan):
        expected = sample_latents(label_denoiser(pipe, (1, 2, 3), 2.0), pipe.scheduler, 4, 7, range(3))
    found = final_latents(pipe, plan, (1, 2, 3), 7, 2.0, 4, batch=2)  # a scale that is not the plan's
    torch.testing.assert_close(found.latents, expected, rtol=1e-4, atol=1e-4)
    full = final_latents(pipe, None, (1, 2, 3), 7, 2.0, 4, batch=2)
    assert full.distance(found) == pytest.approx(
        float((expected - full.latents).norm() / full.latents.norm()), rel=1e-3
    )
    assert psnr(full, full) is None and 0 < (psnr(full, found) or 0) < 60


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "small"
    small_pipeline(layers=2).save_pretrained(folder)
    out = tmp_path / "results"
    drift.main(
        ["--model", str(folder), "--steps", "3", "--reference-steps", "4", "--labels", "2", "--n", "3", "--batch", "2",
         "--mrae", "0.1", "0.4", "--drift", "0.1", "--budgets", "0.3", "--seeds", "2", "--classes", "1",
         "--scales", "2", "--device", "cpu", "--out", str(out)]
    )  # fmt: skip
    result = json.loads((out / "drift-small.json").read_text())
    assert [(row["loss"], row["threshold"]) for row in result["rows"]] == [
        ("mrae", 0.1), ("mrae", 0.4), ("drift", 0.1), ("within", 0.3)]  # fmt: skip
    assert {"macs", "psnr", "psnr_same_steps", "latent_rel_l2"} <= result["rows"][0].keys()
    assert len(result["sensitivity"]) == 3 and "--out" not in result["command"]
    (budget,) = result["budgets"]
    assert budget["upper"] <= budget["asked"] == 0.3 and len(budget["verified"]) == 6
    assert set(budget["tests"]) == {"other seeds", "other classes and seeds", "other seeds, guidance 2"}
    assert budget["tests"]["other seeds"]["of"] == 2
    with pytest.raises(DitFastAttnError, match="--seeds must be at least 1"):
        drift.main(["--seeds", "0"])

    (tmp_path / "eval/results").mkdir(parents=True)
    for name in ("drift", "drift-demo-long"):
        (tmp_path / f"eval/results/{name}.json").write_text((out / "drift-small.json").read_text())
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    table = readme.drift()
    assert "| `--drift 0.3` |" in table and "| mrae 0.1 |" in table and "of 2 within" in table
