"""The Triton kernel: in Triton's interpreter on a CPU, and compiled on a GPU.

The interpreter must be chosen before Triton is imported, and diffusers imports it. So without a GPU this file runs
itself again in a process with ``TRITON_INTERPRET=1``, and ``test_triton_video.py`` with it.
"""

import json
import logging
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ditfastattn.kernels.base import window_mask
from plans import Window

pytest.importorskip("triton", reason="Triton is not installed (pip install triton)")

from ditfastattn.kernels import triton_tuning
from ditfastattn.kernels.triton import Triton
from ditfastattn.kernels.triton_window import Config, Epilogue, launch, split_head_dim

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if ON_GPU else "cpu"
VIDEO = str(Path(__file__).with_name("test_triton_video.py"))
kernel_runs = pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="runs within test_in_the_interpreter")
interpreted = pytest.mark.skipif(ON_GPU or not INTERPRETED, reason="runs within test_in_the_interpreter, if no GPU")
SMALL = Config(rows=16, keys=16, warps=4, stages=1)


def inputs(batch: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """q, k, v as slices of a packed projection (B, N, 3, H, D), and a contiguous fourth."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(batch, tokens, 3, heads, head_dim, generator=generator)
    other = torch.randn(batch, tokens, heads, head_dim, generator=generator)
    return [*packed.to(DEVICE, dtype).unbind(2), other.to(DEVICE, dtype)]


def formula(q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v in float64, written out. (B, N, H, D) -> (B, N, H, D)."""
    q, k, v = (t.double() for t in (q, k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[3])
    scores = scores.masked_fill(~window_mask(q.shape[1], window, q.device), float("-inf"))
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)


def relative_error(out: Tensor, expected: Tensor) -> float:
    error = (out.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    return float(error) if torch.isfinite(error) else math.inf


def run(tensors: list[Tensor], window: Window, epilogue: Epilogue, config: Config = SMALL) -> Tensor:
    """The kernel on an output full of NaN: what it leaves unwritten shows."""
    q, k, v, other = tensors
    out = torch.full(q.shape, float("nan"), dtype=q.dtype, device=q.device)
    launch(q, k, v, None if epilogue == Epilogue.WINDOW else other, out, window.left, window.right, epilogue, config)
    return out


def expected_of(tensors: list[Tensor], window: Window, epilogue: Epilogue) -> Tensor:
    q, k, v, other = tensors
    attended = formula(q, k, v, window)
    return {0: attended, 1: attended + other.double(), 2: other.double() - attended}[epilogue]


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


# ---- on a GPU, against SDPA in the same dtype ----

SHAPES = [(2, 256, 3, 64), (1, 333, 2, 72), (2, 1024, 2, 72), (1, 513, 3, 80), (1, 400, 2, 96), (2, 640, 2, 128),
          (1, 129, 1, 8), (1, 77, 2, 40), (1, 300, 1, 160), (1, 257, 2, 256), (1, 1, 1, 72),
          (1, 2100, 16, 72),
          (4200, 16, 16, 16), (300, 17, 3, 72), (200, 5, 2, 72)]  # fmt: skip
# The frames of a video: more programs than 65,535, the limit of a grid's second dimension; and lengths beside 16.
WINDOWS = [(0, 0), (1 / 16, 1 / 16), (1 / 8, 1 / 8), (0, 0.3), (0.4, 0.01), (1, 1)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_no_larger_than_that_of_sdpa(
    shape: tuple[int, int, int, int], dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 10 %. In float32 both are at rounding level, where the order of sums decides: 2e-6 is granted."""
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path))
    tokens = shape[1]
    tensors = inputs(*shape, dtype, seed=tokens)
    contiguous = [t.contiguous() for t in tensors]
    for left, right in WINDOWS:
        window = Window(left=int(left * tokens), right=int(right * tokens))
        q, k, v = (t.transpose(1, 2) for t in contiguous[:3])
        mask = window_mask(tokens, window, q.device)
        reference = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        bound = 1.1 * relative_error(reference, formula(*tensors[:3], window)) + 1e-7
        if dtype == torch.float32:
            bound = max(bound, 2e-6)
        exact = expected_of(tensors, window, Epilogue.WINDOW)
        for operands in (tensors, contiguous):
            for config in triton_tuning.candidates(operands[0]):
                try:
                    out = run(operands, window, Epilogue.WINDOW, config)
                except Exception as error:  # a cut that this GPU cannot hold: tuning skips it too
                    assert "resource" in str(error).lower() and config != triton_tuning.default_config(operands[0])
                    continue
                assert relative_error(out, exact) <= bound, (window, config)
            for config, epilogue in product(
                (triton_tuning.default_config(operands[0]), triton_tuning.candidates(operands[0])[-1]),
                (Epilogue.ADD, Epilogue.SUBTRACT),
            ):
                # The sum is rounded once; a difference of near-equal numbers has the error of its terms.
                error = (
                    run(operands, window, epilogue, config).double() - expected_of(operands, window, epilogue)
                ).norm()
                scale = operands[3].double().norm() + exact.norm()
                assert float(error / scale) <= max(bound, torch.finfo(dtype).eps)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_huge_scores_on_the_gpu(dtype: torch.dtype) -> None:
    tensors = inputs(1, 300, 2, 72, dtype, seed=5)
    tensors[0] *= 1e3
    window = Window(left=40, right=20)
    exact = formula(*tensors[:3], window)
    for config in triton_tuning.candidates(tensors[0]):
        assert relative_error(run(tensors, window, Epilogue.WINDOW, config), exact) < 2e-2, config


@pytest.mark.gpu
def test_the_gpus_own_kernel_is_among_the_cuts() -> None:
    """Else the tests of all cuts say nothing about it."""
    import triton

    q = torch.empty(1, 64, 1, 72, dtype=torch.bfloat16, device=DEVICE)
    expected = torch.cuda.get_device_capability() == (9, 0) and triton.__version__.startswith("3.6.")
    assert any(config.hopper for config in triton_tuning.candidates(q)) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", Epilogue)
def test_nothing_else_is_written_and_runs_are_identical(epilogue: Epilogue) -> None:
    q, k, v, other = inputs(2, 1100, 9, 72, torch.bfloat16, seed=10)
    margin = 4096
    for config in triton_tuning.candidates(q):
        outs = []
        for _ in range(2):
            space = torch.full((q.numel() + 2 * margin,), float("nan"), dtype=q.dtype, device=q.device)
            outs.append(space[margin:-margin].view(q.shape))
            operand = None if epilogue == Epilogue.WINDOW else other
            launch(q, k, v, operand, outs[-1], 130, 70, epilogue, config)
            assert torch.isnan(space[:margin]).all() and torch.isnan(space[-margin:]).all(), config
        assert torch.isfinite(outs[0]).all() and torch.equal(*outs), config


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["rows at odd places", "another dtype"])
def test_what_the_copy_engine_cannot_read_is_read_otherwise(case: str) -> None:
    width = 73 if case == "rows at odd places" else 72
    tensors = [torch.randn(2, 200, 4, width, device=DEVICE, dtype=torch.bfloat16)[..., :72] for _ in range(4)]
    if case == "another dtype":
        tensors[3] = tensors[3].float()
    window = Window(left=40, right=20)
    for config in triton_tuning.candidates(tensors[0]):
        out = run(tensors, window, Epilogue.ADD, config)
        assert relative_error(out, expected_of(tensors, window, Epilogue.ADD)) < 5e-3, config


@pytest.mark.gpu
def test_capture_in_a_cuda_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path))
    kernel, window = Triton(), Window(left=64, right=32)
    q, k, v, other = inputs(2, 500, 4, 72, torch.bfloat16, seed=6)
    kernel.window(q, k, v, window, add=other)
    assert triton_tuning.cache_file().exists()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel.window(q, k, v, window, add=other)
    for tensor, fresh in zip((q, k, v, other), inputs(2, 500, 4, 72, torch.bfloat16, seed=7), strict=True):
        tensor.copy_(fresh)
    graph.replay()
    assert torch.equal(out, kernel.window(q, k, v, window, add=other))  # and two runs are bit-identical
    assert relative_error(out, expected_of([q, k, v, other], window, Epilogue.ADD)) < 5e-3


@pytest.mark.gpu
def test_an_unknown_shape_is_not_measured_during_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path))
    tensors = inputs(1, 200, 2, 72, torch.bfloat16, seed=8)
    q, k, v, _ = tensors
    window = Window(left=20, right=20)
    run(tensors, window, Epilogue.WINDOW, triton_tuning.default_config(q))  # compiled, not measured
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        Triton().window(q, k, v, window)
    assert not triton_tuning.cache_file().exists()


@pytest.mark.gpu
def test_compiled_code_sees_one_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path))
    from ditfastattn.kernels import triton_ops

    q, k, v, other = inputs(1, 128, 2, 72, torch.bfloat16, seed=9)
    torch.library.opcheck(triton_ops.window_add, (q, k, v, other, 16, 16))
    step = torch.compile(lambda q: triton_ops.window_add(q, k, v, other, 16, 16) * 2, fullgraph=True)
    assert torch.allclose(step(q), triton_ops.window_add(q, k, v, other, 16, 16) * 2)
