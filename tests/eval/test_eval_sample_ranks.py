"""torchrun with two gloo processes on a CPU: the same files, the same plan, one voice; and kill -9 in the middle."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sampled import contents

from calibration.cli import main as calibrate
from eval.cli import main
from plans import load

ROOT = Path(__file__).parent.parent.parent


def torchrun(*command: str) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    return subprocess.Popen(
        [*line, "--master-port", str(port), "-m", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def sampling(model: Path, out: Path, n: int) -> list[str]:
    """``--images`` is ``--n``, which torchrun would take for an option of its own."""
    options = ["--images", str(n), "--batch", "2", "--steps", "6", "--latents", "--device", "cpu"]
    return ["sample", "--model", str(model), "--out", str(out), *options]


def kill_all(process: subprocess.Popen[str]) -> None:
    """torchrun and its workers at once: they outlive it else, and go on."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    process.communicate()


def test_two_processes_give_the_files_of_one(model: Path, tmp_path: Path) -> None:
    assert main(sampling(model, tmp_path / "one", 9)) == 0
    status, out, err = finish(torchrun("eval", *sampling(model, tmp_path / "two", 9)))
    assert status == 0, err
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert out.count("holds 9 images") == 1  # rank 0 alone speaks
    assert '"processes": 2' in (tmp_path / "two" / "run.json").read_text()


def test_kill_9_in_the_middle_and_another_number_of_processes(model: Path, tmp_path: Path) -> None:
    n = 80
    assert main(sampling(model, tmp_path / "whole", n)) == 0
    process = torchrun("eval", *sampling(model, tmp_path / "killed", n))
    images = tmp_path / "killed" / "images"
    try:
        until = time.monotonic() + 100
        while len(list(images.glob("*.png")) if images.exists() else []) < 12:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.002)
    finally:
        kill_all(process)
    assert 12 <= len(list(images.glob("*.png"))) < n  # or nothing is tested
    assert main(sampling(model, tmp_path / "killed", n)) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_processes_calibrate_the_plan_of_one(model: Path, tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        options = ["--threshold", "0.3", "--steps", "5", "--n-calib", "3", "--device", "cpu"]
        return ["--model", str(model), *options, "--output", str(tmp_path / name)]

    assert calibrate(command("one.json")) == 0
    status, out, err = finish(torchrun("calibration", *command("two.json")))
    assert status == 0, err
    one, two = load(tmp_path / "one.json"), load(tmp_path / "two.json")
    assert two.methods == one.methods and len({method for row in one.methods for method in row}) > 2
    for ours, theirs in zip(two.losses, one.losses, strict=True):
        assert [loss and pytest.approx(loss, rel=1e-4) for loss in theirs] == list(ours)
    assert len(re.findall("^attention MACs", out, re.MULTILINE)) == 1
