"""Resampled plans beside plans calibrated there, on a model that takes seconds."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_models import full_plan, random_plan, small_pipeline

import calibration.calibrate
import plans
from calibration.settings import Settings
from ditfastattn.errors import DitFastAttnError
from ditfastattn.resample import resample
from eval import resampled
from eval.drift_runs import final_latents, psnr
from eval.resampled import next_threshold
from plans.macs import plan_macs
from plans.make import fora


def test_the_next_threshold() -> None:
    rows = [{"threshold": t, "attention_macs": m} for t, m in ((0.04, 80.0), (0.01, 100.0), (0.16, 40.0))]
    assert next_threshold([], 50, 0.07) == 0.07
    assert next_threshold(rows, 60, 1) == pytest.approx(0.08)  # halfway between 0.04 and 0.16, by logarithm
    assert next_threshold(rows, 90, 1) == pytest.approx(0.02)
    assert next_threshold(rows, 30, 1) == 0.32 and next_threshold(rows[:1], 90, 1) == 0.02
    assert 0.01 < next_threshold(rows, 80, 1) < 0.04  # never one that was tried


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def calibrate(pipe: Any, settings: Settings, **how: Any) -> Any:
        asked.append((settings.steps, settings.guidance_scale))
        return calibration.calibrate.calibrate(pipe, settings, **how)

    monkeypatch.setattr(resampled, "calibrate", calibrate)
    folder, out = tmp_path / "small", tmp_path / "results"
    pipe = small_pipeline(layers=2)
    pipe.save_pretrained(folder)
    source = random_plan(pipe, steps=4)
    plans.save(source, tmp_path / "mine.json")
    arguments = ["--model", str(folder), "--out", str(out), "--device", "cpu"]
    arguments += ["--labels", "2", "--n", "3", "--batch", "2"]
    given = [*arguments, "--plans", str(tmp_path / "mine.json"), "--steps", "3", "--scales", "2", "--tries", "2"]
    resampled.main([*given, "--near", "0"])
    result = json.loads((out / "resampled-small.json").read_text())
    assert "--out" not in result["command"] and result["from"] == {"steps": 4, "guidance": 4.0}
    assert asked == [*[(3, 4.0)] * 2, *[(4, 2.0)] * 2]
    rows = result["rows"]
    assert {"plan", "steps", "guidance", "attention_macs", "latent_rel_l2", "psnr", "of"} <= rows[0].keys()
    assert [(row["of"], row["steps"], row["guidance"]) for row in rows] == [
        ("calibrated", 4, 4.0),
        *[("resampled", 3, 4.0), *[("calibrated", 3, 4.0)] * 2],
        *[("resampled", 4, 2.0), *[("calibrated", 4, 2.0)] * 2],
    ]
    assert [row["plan"] for row in rows if row["of"] == "resampled"] == ["mine", "mine"]
    assert [(pair["resampled"]["steps"], pair["calibrated"]["steps"]) for pair in result["nearest"]] == [(3, 3), (4, 4)]

    plan = resample(source, steps=3)
    labels = resampled.Comparison(resampled.parser().parse_args(given)).images
    full, ours = (final_latents(pipe, p, labels, 1000, 4.0, 3, batch=2) for p in (None, plan))
    assert rows[1]["attention_macs"] == round(plan_macs(plan).percent, 2)
    assert rows[1]["latent_rel_l2"] == pytest.approx(full.distance(ours), abs=1e-5)
    assert rows[1]["psnr"] == pytest.approx(psnr(full, ours), abs=0.05)


def test_plans_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    source = full_plan(small_pipeline(), steps=4)
    own = source.with_timesteps((900, 600, 300, 100))
    for name, plan in {"a": source, "b": resample(source, steps=3), "mlps": fora(source, 2), "own": own}.items():
        plans.save(plan, tmp_path / f"{name}.json")
    with pytest.raises(DitFastAttnError, match="different runs, compare them apart: steps: the first plan has 4, b 3"):
        resampled.main(["--plans", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    with pytest.raises(DitFastAttnError, match="mlps has the sites attn, mlp"):
        resampled.main(["--plans", str(tmp_path / "mlps.json")])
    with pytest.raises(DitFastAttnError, match="own has timesteps of its own; calibration plans those of the sampler"):
        resampled.main(["--plans", str(tmp_path / "own.json")])
    with pytest.raises(DitFastAttnError, match="--tries must be at least 1, got 0"):
        resampled.main(["--tries", "0"])
    with pytest.raises(DitFastAttnError, match=r"the plans are for another model than demo: layers: the plan has 4"):
        resampled.main(["--plans", str(tmp_path / "a.json"), "--device", "cpu"])


def test_a_plan_that_ships_keeps_its_name_and_is_compared_on_labels_it_has_not_seen() -> None:
    name = "demo-dpm50-mrae-0.05"
    compared = resampled.Comparison(
        resampled.parser().parse_args(["--plans", name, "--n", "65", "--labels", "2", "--device", "cpu"])
    )
    assert list(compared.plans) == [name]
    record = plans.load(name).calibration
    assert record is not None and record.labels
    assert len(set(compared.images)) > 40 and not set(compared.images) & set(record.labels)
