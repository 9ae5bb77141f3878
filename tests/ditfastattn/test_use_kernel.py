"""One kernel for all self-attention, without a plan: the same numbers, put back exactly, refused in one sentence."""

import math
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from diffusers.models.attention_processor import AttnProcessor
from small_models import everything, full_plan, same, sample
from small_pixart import sample_pixart, small_pixart_pipeline
from torch import Tensor

import ditfastattn
from ditfastattn.errors import ApplyError, KernelError
from ditfastattn.kernels import KERNELS
from ditfastattn.kernels.base import Kernel
from plans import Window


class Counting(Kernel):
    """Full attention written out, counting its calls."""

    name = "counting"
    calls = 0

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        return [] if q.dtype == torch.float32 else [f"float32 is needed, not {q.dtype}"]

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        type(self).calls += 1
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[3])
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "counting", Counting)
    monkeypatch.setattr("ditfastattn.kernels.NAMES", ("auto", *KERNELS))
    monkeypatch.setattr(Counting, "calls", 0)


def test_every_layer_takes_the_kernel_and_gives_it_back(pipe: DiTPipeline) -> None:
    plain, before = sample(pipe, 3), everything(pipe)
    with ditfastattn.use_kernel(pipe, "counting"):
        torch.testing.assert_close(sample(pipe, 3), plain, rtol=1e-4, atol=1e-4)
    assert Counting.calls == 3 * 4
    assert same(before, everything(pipe)) and torch.equal(sample(pipe, 3), plain)


def test_torchs_own_attention_changes_no_bit(pipe: DiTPipeline) -> None:
    plain = sample(pipe, 3)
    with ditfastattn.use_kernel(pipe, "sdpa"):
        assert torch.equal(sample(pipe, 3), plain)


def test_cross_attention_is_left_alone() -> None:
    pipe = small_pixart_pipeline()
    plain = sample_pixart(pipe, 3)
    with ditfastattn.use_kernel(pipe, "counting"):
        assert (sample_pixart(pipe, 3) - plain).norm() < 1e-4 * plain.norm()
    assert Counting.calls == 3 * 4 and torch.equal(sample_pixart(pipe, 3), plain)


def test_a_processor_set_before_comes_back(pipe: DiTPipeline) -> None:
    theirs = AttnProcessor()
    for block in pipe.transformer.transformer_blocks:
        block.attn1.set_processor(theirs)
    swap = ditfastattn.use_kernel(pipe.transformer, "auto")
    assert pipe.transformer.transformer_blocks[0].attn1.processor is not theirs
    swap.remove()
    swap.remove()
    assert all(block.attn1.processor is theirs for block in pipe.transformer.transformer_blocks)


def test_what_another_tool_set_since_stays(pipe: DiTPipeline) -> None:
    swap = ditfastattn.use_kernel(pipe, "sdpa")
    theirs = AttnProcessor()
    for block in pipe.transformer.transformer_blocks:
        block.attn1.set_processor(theirs)
    with pytest.warns(UserWarning, match="another tool has set attention processors"):
        swap.remove()
    assert pipe.transformer.transformer_blocks[0].attn1.processor is theirs


def test_what_cannot_be_swapped_is_refused(pipe: DiTPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(error: type[Exception], match: str, target: Any = pipe, kernel: str = "sdpa") -> None:
        before = everything(pipe)
        with pytest.raises(error, match=match) as caught:
            ditfastattn.use_kernel(target, kernel)
        assert "\n" not in str(caught.value)
        assert same(before, everything(pipe))

    refused(KernelError, "there is no kernel 'fast'", kernel="fast")
    monkeypatch.setattr("ditfastattn.kernels.xformers.find_spec", lambda name: None)
    refused(KernelError, "kernel 'xformers' cannot take .*not installed", kernel="xformers")
    refused(ApplyError, "Linear is not supported", target=torch.nn.Linear(2, 2))
    refused(ApplyError, "object has no transformer", target=object())
    with ditfastattn.use_kernel(pipe, "sdpa"):
        refused(ApplyError, "block 0: its attention processor KernelProcessor")
        with pytest.raises(ApplyError, match="KernelProcessor would be bypassed"):
            ditfastattn.apply(pipe, full_plan(pipe))
    with ditfastattn.apply(pipe, full_plan(pipe)):
        refused(ApplyError, "follows a plan")


def test_a_model_that_no_longer_fits_is_refused_when_it_runs(pipe: DiTPipeline) -> None:
    with ditfastattn.use_kernel(pipe, "counting"):
        pipe.transformer.double()
        with pytest.raises(KernelError, match="float32 is needed"), torch.no_grad():
            pipe.transformer(torch.randn(2, 4, 8, 8).double(), torch.zeros(2), torch.tensor([1, 2]))


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("kernel", [name for name in KERNELS])
def test_kernels_on_the_gpu(pipe: DiTPipeline, kernel: str) -> None:
    model = pipe.transformer.to("cuda", torch.bfloat16)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to("cuda", torch.bfloat16)
    call = (latents, torch.full((4,), 500, device="cuda"), torch.tensor([1, 2, 3, 1000], device="cuda"))
    plain = model(*call).sample
    try:
        swap = ditfastattn.use_kernel(model, kernel)
    except KernelError as error:
        pytest.skip(str(error))
    with swap:
        ours = model(*call).sample
    assert (ours - plain).float().norm() / plain.float().norm() < 0.03
