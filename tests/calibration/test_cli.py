"""The command line, from a pipeline folder to plan, pictures and summary, and every kind of bad input."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_models import small_pipeline

from calibration.cli import main
from ditfastattn import load_pipeline
from ditfastattn.cost import CostTable, PlanTime, predict
from ditfastattn.kernels import NAMES
from ditfastattn.models import adapt
from plans import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small"
    small_pipeline().save_pretrained(path)
    return path


def base(folder: Path, output: Path, *more: str) -> list[str]:
    return ["--model", str(folder), "--steps", "5", "--n-calib", "2", "--device", "cpu", "--output", str(output), *more]


def test_two_thresholds_end_to_end(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(base(folder, tmp_path, "--threshold", "0.2", "0.6")) == 0
    printed = capsys.readouterr()
    for threshold in ("0.2", "0.6"):
        stem = tmp_path / f"small-dpm5-mrae-{threshold}"
        plan = load(stem.with_name(stem.name + ".json"))
        assert plan.calibration is not None and plan.calibration.threshold == float(threshold)
        for picture in (".png", ".images.png"):
            assert Image.open(str(stem) + picture).size[0] > 200
        assert str(stem) + ".json" in printed.out
    for words in ("attention MACs", "block runs", "latents rel. L2", "PSNR", "share of cells"):
        assert words in printed.out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["threshold"] for row in summary["rows"]] == ["0.2", "0.6"]
    assert {"attention_macs", "latent_rel_l2", "psnr", "ssim"} <= summary["rows"][0].keys()
    assert {"command", "device", "versions", "date"} <= summary.keys()
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".new", ".partial")) == []

    plan_path = str(tmp_path / "small-dpm5-mrae-0.2.json")
    assert main(["explain", plan_path, "--layer", "2", "--step", "3"]) == 0
    explained = capsys.readouterr().out
    assert f"layer 2: {load(plan_path).methods[3][2]}" in explained and "limit" in explained
    assert main(["explain", plan_path, "--layer", "0", "--step", "0"]) == 0
    assert "by rule" in capsys.readouterr().out
    assert main(["explain", plan_path, "--layer", "9", "--step", "0"]) == 2
    capsys.readouterr()
    assert main(["explain", "demo-dpm50-mrae-0.05", "--layer", "0", "--step", "0"]) == 2  # ships without its trace
    assert "no trace at demo-dpm50-mrae-0.05.trace.jsonl" in capsys.readouterr().err


def test_the_predicted_time_is_told_once_blocks_were_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "cache"))
    command = ["--threshold", "0.5", "--kernel", "sdpa"]
    assert main(base(folder, tmp_path / "a.json", *command)) == 0
    assert "predicted run time" not in capsys.readouterr().out
    CostTable.of(adapt(load_pipeline(folder).transformer), 4, 16, "sdpa", repeats=1)
    assert main(base(folder, tmp_path / "b.json", *command)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "predicted run time" in line]
    assert " ms of " in line and " ms full, measured on " in line and line.endswith("(eager, 4 rows a call)")


def test_a_plan_that_is_slower_than_none_is_said_plainly(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "cache"))
    CostTable.of(adapt(load_pipeline(folder).transformer), 4, 16, "sdpa", repeats=1)
    for total, said in ((1394.3, True), (1200.0, False)):

        def known(*measured: Any, total: float = total) -> PlanTime:
            time = predict(*measured)
            assert time is not None
            return replace(time, total=total, full=1200.0)

        monkeypatch.setattr("calibration.calibrate_cli.predict", known)
        assert main(base(folder, tmp_path / "a.json", "--threshold", "0.5", "--kernel", "sdpa")) == 0
        printed = capsys.readouterr().out
        assert (
            "slower here than uncompressed, by measured times 1394.3 ms against 1200.0:\nask for a plan by time"
            in printed
        ) is said
        assert ("python -m calibration advise" in printed) is said


def test_little_compression_is_said_plainly(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(base(folder, tmp_path / "p.json", "--threshold", "1e-7")) == 0
    printed = capsys.readouterr().out
    assert "Little could be compressed: 100.0 %" in printed and "mrae of these candidates" in printed
    assert "equal" in printed  # and the images are those of the uncompressed sampler
    assert (tmp_path / "p.json").exists()
    assert main(base(folder, tmp_path / "f.json", "--drift", "1e-6", "--search", "fast")) == 0
    assert "Little could be" in (printed := capsys.readouterr().out) and "try a larger --drift" in printed


def test_the_token_order_is_in_the_plan_and_in_the_trace(folder: Path, tmp_path: Path) -> None:
    assert main(base(folder, tmp_path / "p.json", "--threshold", "0.4", "--token-order", "hilbert")) == 0
    assert load(tmp_path / "p.json").token_order == "hilbert"
    assert json.loads((tmp_path / "p.trace.jsonl").read_text().splitlines()[0])["token_order"] == "hilbert"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--threshold", "abc"], "no threshold"),
        (["--threshold", "-1"], "positive"),
        ([], "required"),
        (["--threshold", "0.1", "--model", "/nowhere/at/all"], "does not exist"),
        (["--threshold", "0.1", "--methods", "FULL"], "no method to choose"),
        (["--threshold", "0.1", "--seed", "-1"], "the seed"),
        (["--threshold", "0.1", "--steps", "2000"], "2000 steps are more than the 1000"),
        (["--threshold", "0.05", "D2"], "stands twice"),
        (["--threshold", "0.1", "--vae", "somewhere"], "brings a VAE of its own"),
        (["--threshold", "0.1", "--kernel", "warp"], "invalid choice"),
        (["--threshold", "0.1", "--methods", "AST,FAST"], "unknown methods"),
        (["--threshold", "0.1", "--window", "wide"], "window 'wide'"),
        (["--threshold", "0.1", "--window", "99"], "wider than"),
        (["--threshold", "0.1", "--token-order", "spiral"], "invalid choice"),
        (["--threshold", "0.1", "--labels", "1,dragon"], "no class named 'dragon'"),
        (["--threshold", "0.1", "--labels", "1001"], "label 1001"),
        (["--threshold", "0.1", "--n-calib", "0"], "--n-calib"),
        (["--threshold", "0.1", "--guidance", "0"], "guidance scale"),
        (["--threshold", "0.1", "--steps", "0"], "at least one step"),
        (["--threshold", "0.1", "--device", "cuda:7"], "device 'cuda:7'"),
        (["--threshold", "0.1", "0.2", "--output", "one.json"], "one file, but several"),
        (["--threshold", "0.1", "--output", "/proc/nothing/here"], "cannot be written"),
        (["explain", "/nowhere.json"], "required"),
        (["explain", "/nowhere.json", "--layer", "1", "--step", "1"], "nowhere.json"),
    ],
)
def test_bad_input_gets_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    arguments = more if more[:1] == ["explain"] else base(folder, tmp_path, *more)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("error: ")] == error.splitlines()[-1:]


def test_interrupted_and_resumed_from_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(base(folder, tmp_path / "whole.json", "--threshold", "0.3")) == 0
    from calibration import search as module

    choose, calls = module.choose_methods, iter(range(100))

    def interrupted(*args, **kwargs):  # type: ignore[no-untyped-def]
        if next(calls) == 2:
            raise KeyboardInterrupt
        return choose(*args, **kwargs)

    monkeypatch.setattr(module, "choose_methods", interrupted)
    assert main(base(folder, tmp_path / "plan.json", "--threshold", "0.3")) == 130
    assert "--resume" in capsys.readouterr().err and not (tmp_path / "plan.json").exists()
    monkeypatch.undo()
    assert main(base(folder, tmp_path / "plan.json", "--threshold", "0.3", "--resume")) == 0
    whole, resumed = load(tmp_path / "whole.json"), load(tmp_path / "plan.json")
    assert whole.methods == resumed.methods and whole.losses == resumed.losses


def test_finished_thresholds_are_not_searched_again_on_resume(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(base(folder, tmp_path, "--threshold", "0.3")) == 0
    before = load(tmp_path / "small-dpm5-mrae-0.3.json")
    capsys.readouterr()
    assert main(base(folder, tmp_path, "--threshold", "0.3", "--resume")) == 0
    assert "block runs          20 made" in capsys.readouterr().out  # five steps of four blocks, no trial
    assert load(tmp_path / "small-dpm5-mrae-0.3.json").methods == before.methods


def test_nothing_is_overwritten_by_other_settings(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    assert main(base(folder, plan, "--threshold", "0.3")) == 0
    before = plan.read_bytes()
    assert main(base(folder, plan, "--threshold", "0.3", "--guidance", "2")) == 2
    assert "other settings (guidance_scale)" in capsys.readouterr().err and plan.read_bytes() == before
    assert main(base(folder, plan, "--threshold", "0.3")) == 0  # the same settings may be run again
    (tmp_path / "mine.json").write_bytes(before)
    assert main(base(folder, tmp_path / "mine.json", "--threshold", "0.3")) == 2
    assert "not written by a calibration" in capsys.readouterr().err
    (tmp_path / "new.trace.jsonl.partial").write_text("")
    assert main(base(folder, tmp_path / "new.json", "--threshold", "0.3")) == 2
    assert "--resume" in capsys.readouterr().err


def test_help_has_examples() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "calibration", "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in printed.stdout and "--threshold D1 D3 D6" in printed.stdout
    assert all(name in printed.stdout for name in NAMES)
