"""The Triton kernel at the sites of video models: frames of many tokens, and thousands of rows of a few frames.

On a CPU ``test_triton_kernel.py`` runs what is quick enough of it in Triton's interpreter.
"""

import os
from typing import Any

import pytest
import torch
from small_latte import small_latte_pipeline
from small_opensora import small_opensora
from torch import Tensor

import ditfastattn
from eval.geometry import Geometry
from plans import Method, SiteName, Window

pytest.importorskip("triton", reason="Triton is not installed (pip install triton)")

from ditfastattn.kernels import triton_tuning
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.kernels.triton import Triton

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = pytest.mark.skipif(
    not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="runs within test_triton_kernel.py"
)
METHODS = (Method.FULL, Method.WA_RS, Method.ASC, Method.WA_RS_ASC, Method.AST, Method.WA_RS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path))


@pytest.mark.parametrize("tokens", [1, 15, 16, 17])
def test_many_short_rows(tokens: int) -> None:
    rows, heads = (3000, 16) if ON_GPU else (3, 2)
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    generator = torch.Generator().manual_seed(tokens)
    q, k, v, other = (torch.randn(rows, tokens, heads, 72, generator=generator).to(DEVICE, dtype) for _ in range(4))
    window = Window(left=tokens // 8, right=tokens // 8 + 1)
    expected = SDPA().window(q.double(), k.double(), v.double(), window)
    bound = 6e-3 if ON_GPU else 2e-6
    out = Triton().window(q, k, v, window, add=other).double()
    assert (out - expected - other.double()).norm() < bound * (expected.norm() + other.norm())
    out = Triton().residual(q, k, v, other, window).double()
    assert (out - other.double() + expected).norm() < bound * (expected.norm() + other.norm())


@pytest.mark.gpu
def test_short_rows_have_cuts_of_their_own() -> None:
    def sides(tokens: int) -> set[int]:
        q = torch.empty(2, tokens, 1, 72, device="cuda", dtype=torch.bfloat16)
        return {config.rows for config in triton_tuning.candidates(q)}

    assert sides(16) == {16, 32, 64} and sides(17) == {32, 64} and min(sides(33)) == 64


def latte() -> Geometry:
    return Geometry("latte", small_latte_pipeline(), True, {"video_length": 4, "height": 16, "width": 16})


def open_sora() -> Geometry:
    """Frames of an odd number of tokens, an odd number of them."""
    pipe = small_opensora("dpm", text=False)
    return Geometry("open-sora", pipe, True, {"num_frames": 5, "height": 12, "width": 20})


@pytest.mark.gpu
@pytest.mark.parametrize("site", ["attn", "temporal"])
@pytest.mark.parametrize("family", [latte, open_sora])
def test_every_method_equals_the_reference(family: Any, site: SiteName) -> None:
    """Each step of the site by another method, the other site FULL."""
    geometry = family()
    geometry.pipe.to(DEVICE)
    outputs: list[Tensor] = []
    geometry.pipe.transformer.register_forward_hook(lambda _, args, output: outputs.append(output[0]))
    plan = geometry.full_plan(len(METHODS))
    plan = plan.with_methods([[method] * plan.model.shape(site).layers for method in METHODS], site=site)

    def run(kernel: str) -> list[Tensor]:
        outputs.clear()
        with ditfastattn.apply(geometry.pipe, plan, kernel=kernel) as session:
            geometry.sample(2, len(METHODS))
        assert session.summary().sites[site].kernel == kernel
        return list(outputs)

    for method, expected, ours in zip(METHODS, run("sdpa"), run("triton"), strict=True):
        assert (ours - expected).norm() < 1e-4 * expected.norm(), method
