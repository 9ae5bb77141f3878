"""The whole reproduction on a model with random weights, and what happens when it is ended or asked again."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs_for_tests import pictures
from small_models import small_pipeline

from ditfastattn.errors import DitFastAttnError
from eval import sample
from eval.cli import main as eval_main
from eval.stages import Ledger, Stage


def test_it_resumes_and_does_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "cache"))
    small_pipeline(layers=2).save_pretrained(tmp_path / "model")
    (tmp_path / "real").mkdir()
    for i, image in enumerate(pictures(6, size=20)):
        Image.fromarray(image).save(tmp_path / "real" / f"{i}.png")
    out = tmp_path / "out"
    command = ["table1", "--model", str(tmp_path / "model"), "--imagenet", str(tmp_path / "real"), "--n", "5"]
    command += ["--steps", "3", "--n-calib", "1", "--thresholds", "D2", "D6", "--batch", "2", "--lpips", "none"]
    command += ["--network", "metric_tools:tiny", "--device", "cpu", "--dtype", "float32", "--out", str(out)]

    # Killed while D6 is sampled: one batch of it is written.
    draw, drawn = sample.Artist.draw, []

    def killed(self: sample.Artist, indices: range) -> object:
        drawn.append(list(indices))
        if len(drawn) == 8:  # three batches each of full and D2, then the second of D6
            raise KeyboardInterrupt
        return draw(self, indices)

    monkeypatch.setattr(sample.Artist, "draw", killed)
    assert eval_main(command) == 130
    said = capsys.readouterr()
    assert "the same command goes on from here" in said.err and "[5/7] sample D6: python -m eval sample" in said.out
    done = json.loads((out / "table1.json").read_text())["stages"]
    assert list(done) == ["calibrate D2", "calibrate D6", "sample full", "sample D2"]

    assert eval_main(command) == 0
    said = capsys.readouterr()
    assert "[4/7] sample D2: done before" in said.out and "[7/7] measure and report: python" in said.out
    assert drawn[8:] == [[2, 3], [4, 5]]  # the rest of D6, nothing else
    report = json.loads((out / "report" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["full", "D2", "D6"]
    assert all(np.isfinite(row["metrics"]["fid"]["value"]) for row in report["rows"])
    assert (out / "report" / "report.html").exists()

    assert eval_main(command) == 0
    said = capsys.readouterr()
    assert said.out.count("done before") == 7 and "no stages ran" in said.out and len(drawn) == 10

    # An image that went missing is drawn again, and nothing else.
    (out / "runs" / "D2" / "images" / "000003.png").unlink()
    assert eval_main(command) == 0
    assert drawn[10:] == [[2, 3]] and "[4/7] sample D2: python" in capsys.readouterr().out

    assert eval_main([*command, "--n", "6"]) == 2
    assert "n: 5, now 6" in capsys.readouterr().err


def test_a_stage_runs_again_when_its_input_or_arguments_change(tmp_path: Path) -> None:
    given, made = tmp_path / "in", tmp_path / "out"
    given.write_text("one")
    ran: list[str] = []

    class Written(Stage):
        def run(self) -> None:
            ran.append(self.name)
            made.write_text("")

    def stage(*arguments: str) -> Stage:
        return Written("stage", "none", "none", arguments, (given,), made.exists)

    def again(*arguments: str) -> int:
        ran.clear()
        Ledger(tmp_path / "ledger.json", {"n": 1}).run([lambda: stage(*arguments)])
        return len(ran)

    assert (again("a"), again("a")) == (1, 0)
    assert (again("b"), again("b")) == (1, 0)
    given.write_text("two")
    assert (again("b"), again("b")) == (1, 0)
    made.unlink()
    assert (again("b"), again("b")) == (1, 0)
    with pytest.raises(DitFastAttnError, match="n: 1, now 2"):
        Ledger(tmp_path / "ledger.json", {"n": 2})
    (tmp_path / "ledger.json").write_text("[]")
    with pytest.raises(DitFastAttnError, match="not a record"):
        Ledger(tmp_path / "ledger.json", {"n": 1})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--imagenet", "nowhere"], "nowhere does not exist"),
        (["--imagenet", ".", "--n", "1"], "at least 2"),
        (["--imagenet", ".", "--thresholds", "D2", "0.05"], "stands twice"),
        (["--imagenet", ".", "--thresholds", "D9"], "D9"),
        (["--imagenet", ".", "--network", "resnet"], "no network 'resnet'"),
        (["--imagenet", ".", "--processes", "0"], "--processes must be at least 1"),
    ],
)
def test_what_cannot_be_reproduced_is_one_sentence_before_any_work(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_main(["table1", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert reason in said.err and "Traceback" not in said.err
    assert not (tmp_path / "out").exists()
