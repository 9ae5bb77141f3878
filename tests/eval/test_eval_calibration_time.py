"""The calibration's timing does a calibration's work."""

import json
from pathlib import Path

import pytest
import torch
from small_models import small_pipeline
from small_pixart import small_pixart_pipeline

from ditfastattn.errors import DitFastAttnError
from eval import calibration_time
from eval.geometry import Geometry


@pytest.mark.parametrize("eager", [True, False])
def test_the_command(eager: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(calibration_time, "build", lambda *_: Geometry("demo", small_pipeline(), True))
    options = ["--labels", "2", "--steps", "6", "--percent", "40", "--device", "cpu", "--out", str(tmp_path)]
    calibration_time.main([*options, *(["--eager"] if eager else [])])
    result = json.loads((tmp_path / "calibration_time.json").read_text())
    assert result["compiled"] is not eager
    assert "random weights" in result["what"]
    assert result["trials"] > 6 * 4
    assert 0.4 < result["block_runs"] / result["plain_block_runs"] < 0.8  # 4 layers; tends to a half with more


def test_prompts_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibration_time, "build", lambda *_: Geometry("pixart", small_pixart_pipeline(), True))
    with pytest.raises(DitFastAttnError, match="conditioned on prompts"):
        calibration_time.main(["--device", "cpu", "--out", str(tmp_path)])
