"""The Triton kernel against the formula: in Triton's interpreter on a CPU, and compiled on a GPU.

The interpreter must be chosen before Triton is imported, and diffusers imports it. So without a GPU this file runs
itself again in a process with ``TRITON_INTERPRET=1``, and ``test_triton_video.py`` with it.
"""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plans import Window

pytest.importorskip("triton", reason="Triton is not installed (pip install triton)")

from triton_formula import DEVICE, ON_GPU, expected_of, inputs, relative_error, run

from ditfastattn.kernels import triton_tuning
from ditfastattn.kernels.triton import Triton
from ditfastattn.kernels.triton_window import Config, Epilogue, split_head_dim

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
VIDEO = str(Path(__file__).with_name("test_triton_video.py"))
kernel_runs = pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="runs within test_in_the_interpreter")
interpreted = pytest.mark.skipif(ON_GPU or not INTERPRETED, reason="runs within test_in_the_interpreter, if no GPU")


@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="the other tests run as they are")
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", __file__, VIDEO]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@interpreted
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_against_the_formula(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 50))
    head_dim = data.draw(st.sampled_from([8, 16, 24, 40, 72]))
    tensors = inputs(2, tokens, 2, head_dim, torch.float32, seed=data.draw(st.integers(0, 99)))
    window = Window(left=data.draw(st.integers(0, tokens)), right=data.draw(st.integers(0, tokens)))
    epilogue = data.draw(st.sampled_from(Epilogue))
    config = Config(data.draw(st.sampled_from([16, 32])), data.draw(st.sampled_from([16, 32])), warps=4, stages=1)
    assert relative_error(run(tensors, window, epilogue, config), expected_of(tensors, window, epilogue)) < 2e-6


@interpreted
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 33])
def test_window_of_nothing_and_of_everything(tokens: int) -> None:
    tensors = inputs(1, tokens, 2, 72, torch.float32, seed=tokens)
    alone = Window(left=0, right=0)  # each query sees its own key only
    assert relative_error(run(tensors, alone, Epilogue.WINDOW), tensors[2].double()) < 1e-7
    everything = Window(left=tokens, right=tokens)
    assert relative_error(run(tensors, everything, Epilogue.ADD), expected_of(tensors, everything, Epilogue.ADD)) < 2e-6


@kernel_runs
def test_left_and_right_are_not_swapped() -> None:
    tensors = inputs(1, 40, 1, 16, torch.float32, seed=1)
    past = Window(left=5, right=0)
    before = run(tensors, past, Epilogue.WINDOW)
    tensors[2][:, 20:] += 100  # keys after query 19 must not reach it
    assert torch.equal(run(tensors, past, Epilogue.WINDOW)[:, :20], before[:, :20])


@kernel_runs
@pytest.mark.parametrize("case", ["equal", "huge", "one huge key"])
def test_extreme_scores_stay_finite(case: str) -> None:
    tensors = inputs(1, 40, 2, 24, torch.float32, seed=2)
    q, k = tensors[:2]
    if case == "equal":
        q.zero_()
    elif case == "huge":  # scores of about +-1e4
        q *= 1e4 / math.sqrt(24)
    else:
        k[:, 11] *= 1e4
    window = Window(left=9, right=3)
    assert relative_error(run(tensors, window, Epilogue.WINDOW), expected_of(tensors, window, Epilogue.WINDOW)) < 1e-3


@kernel_runs
def test_a_cut_of_another_gpu_gives_the_same_numbers() -> None:
    """As if a file of measurements came from there."""
    tensors = inputs(1, 70, 1, 24, torch.bfloat16 if ON_GPU else torch.float32, seed=11)
    window = Window(left=9, right=30)
    out = run(tensors, window, Epilogue.ADD, Config(128, 64, warps=8, stages=5, hopper=True))
    assert relative_error(out, expected_of(tensors, window, Epilogue.ADD)) < (5e-3 if ON_GPU else 2e-6)


@pytest.mark.parametrize(
    ("head_dim", "tiles"),
    [(8, (16, 0)), (64, (64, 0)), (72, (64, 16)), (80, (64, 16)), (96, (64, 32)), (104, (128, 0)), (256, (256, 0))],
)
def test_columns_are_covered_with_little_waste(head_dim: int, tiles: tuple[int, int]) -> None:
    assert split_head_dim(head_dim) == tiles


def test_every_head_dim_is_covered() -> None:
    for head_dim in range(8, 257, 8):
        main, rest = split_head_dim(head_dim)
        assert head_dim <= main + rest <= max(16, 1.5 * head_dim)


@kernel_runs
def test_the_kernel_class_adds_and_subtracts() -> None:
    q, k, v, other = tensors = inputs(2, 37, 2, 16, torch.float32, seed=3)
    window = Window(left=4, right=9)
    kernel = Triton()
    assert kernel.not_supported_reasons(q, window) == []
    assert relative_error(kernel.window(q, k, v, window), expected_of(tensors, window, Epilogue.WINDOW)) < 1e-5
    assert relative_error(kernel.window(q, k, v, window, add=other), expected_of(tensors, window, Epilogue.ADD)) < 1e-5
    subtracted = kernel.residual(q, k, v, other, window)
    assert relative_error(subtracted, expected_of(tensors, window, Epilogue.SUBTRACT)) < 1e-5


@kernel_runs
def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(left=1, right=1)
    q = torch.zeros(1, 4, 1, 8, device=DEVICE)
    (reason,) = Triton().not_supported_reasons(torch.zeros(1, 4, 1, 12, device=DEVICE), window)
    assert "head_dim 12" in reason
    (reason,) = Triton().not_supported_reasons(q.double(), window)
    assert "float64" in reason
    (reason,) = Triton().not_supported_reasons(torch.zeros(1, 4, 8, 8, device=DEVICE).transpose(2, 3), window)
    assert "contiguous" in reason
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (reason,) = Triton().not_supported_reasons(q.cpu(), window)
    assert "CUDA GPU" in reason
    monkeypatch.setattr("ditfastattn.kernels.triton.find_spec", lambda name: None)
    assert any("pip install triton" in reason for reason in Triton().not_supported_reasons(q, window))


@kernel_runs
def test_operands_of_other_shapes_are_refused() -> None:
    q, k, v, _ = inputs(1, 8, 1, 16, torch.float32, seed=0)
    with pytest.raises(ValueError, match="one shape"):
        Triton().window(q, k[:, :4], v, Window(left=1, right=1))


@kernel_runs
def test_operators_are_sound() -> None:
    from ditfastattn.kernels import triton_ops

    q, k, v, other = inputs(1, 12, 1, 16, torch.float32, seed=4)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(triton_ops.window, (q, k, v, 2, 3), test_utils=tests)
    torch.library.opcheck(triton_ops.window_add, (q, k, v, other, 2, 3), test_utils=tests)
    torch.library.opcheck(triton_ops.window_residual, (q, k, v, other, 2, 3), test_utils=tests)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"version": 1, "configs": {}}', '{"version": 2, "configs": {"a": {"rows": 1}}}']
)
def test_a_damaged_file_of_measurements_is_ignored(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "cuts.json"
    file.write_text(damage)
    with caplog.at_level(logging.WARNING):
        assert triton_tuning.read(file) == {}
    assert "ignored" in caplog.text


def test_measurements_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "new" / "folder"))
    file = triton_tuning.cache_file()
    assert triton_tuning.read(file) == {}  # a missing file is no damage
    configs = {"some shape": Config(64, 32, warps=4, stages=2, registers=128)}
    triton_tuning.write(file, configs)
    assert triton_tuning.read(file) == configs
    assert json.loads(file.read_text())["version"] == triton_tuning.VERSION
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing temporary stays
