"""A small model of images, and ``python -m eval sample`` with it."""

from pathlib import Path

import pytest
from sampled import STEPS, Command
from small_models import small_pipeline

from eval.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small"
    small_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Command:
    def command(out: str = "run", *more: str, n: int = 5, status: int = 0) -> Path:
        base = ["--model", str(model), "--device", "cpu", "--n", str(n), "--batch", "2"]
        steps = [] if "--plan" in more or "--steps" in more else ["--steps", str(STEPS)]
        assert main(["sample", *base, *steps, "--out", str(tmp_path / out), *more]) == status
        return tmp_path / out

    return command
