"""Plans on Open-Sora: both sites of its blocks, videos of any size, and what is refused."""

import random
from typing import Any

import pytest
import torch
from small_models import full_plan
from small_opensora import sample_opensora, small_opensora
from torch import Tensor

import ditfastattn
from ditfastattn.errors import ApplyError
from ditfastattn.models import adapt
from ditfastattn.models.opensora import OpenSora
from plans import GuidanceSpec, Method, Plan, PlanMismatch, TemporalShape, Window
from plans.method import PAPER

STEPS = 4


def full(pipe: Any, guidance_scale: float = 7.0) -> Plan:
    """For the videos of `sample_opensora`: 4 frames of 6 x 8 latents."""
    published = full_plan(pipe, STEPS, guidance_scale)
    return Plan.full(
        model=OpenSora(pipe.transformer).spec_of(4, 6, 8),
        sampler=published.sampler,
        guidance=published.guidance,
        window=Window(left=2, right=1),
        temporal_window=Window(left=0, right=1),
    )


def mixed(pipe: Any, seed: int) -> Plan:
    choose, plan = random.Random(seed), full(pipe)
    for site in plan.sites:
        grid = [[choose.choice(list(PAPER)) for _ in range(2)] for _ in range(STEPS - 1)]
        plan = plan.with_methods([[Method.FULL] * 2, *grid], site=site)
    return plan


@pytest.fixture
def pipe() -> Any:
    return small_opensora(text=False)


def test_the_published_size_is_the_specs() -> None:
    spec = adapt(small_opensora(text=False).transformer).spec()
    assert (spec.tokens, spec.temporal) == (405, TemporalShape(layers=2, frames=16))
    assert (spec.heads, spec.head_dim, spec.in_channels, spec.out_channels) == (3, 16, 4, 8)


@pytest.mark.parametrize("guidance", [7.0, 1.0])
def test_all_full_changes_no_bit_and_is_taken_off_again(pipe: Any, guidance: float) -> None:
    plan = full(pipe, guidance)
    plain = sample_opensora(pipe, STEPS, guidance)
    before = [dict(module.__dict__) for module in pipe.transformer.modules()]
    with ditfastattn.apply(pipe, plan) as session:
        assert torch.equal(sample_opensora(pipe, STEPS, guidance), plain)
        assert session.summary().methods == {Method.FULL: 4 * STEPS}
    assert [dict(module.__dict__) for module in pipe.transformer.modules()] == before
    assert torch.equal(sample_opensora(pipe, STEPS, guidance), plain)


@pytest.mark.parametrize("seed", range(2))
def test_mixed_plans_keep_what_was_predicted(pipe: Any, seed: int) -> None:
    plan = mixed(pipe, seed)
    plain = sample_opensora(pipe, STEPS)
    with ditfastattn.apply(pipe, plan) as session:
        compressed = sample_opensora(pipe, STEPS)
        assert torch.equal(sample_opensora(pipe, STEPS), compressed)
        summary = session.summary()
    assert not torch.equal(compressed, plain) and compressed.isfinite().all()
    assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes > 0


def state_and_part(adapter: OpenSora, index: int) -> tuple[Any, Any]:
    """A part of the first block in the middle of a call: 4 rows, 3 frames of 5 tokens."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    part = adapter.blocks[index]
    arguments = (draw(4, 15, 48), draw(4, 5, 48), None, draw(4, 6, 48), draw(4, 3, 48))
    return part.begin(*arguments, adapter.model.rope(3), skip_attention=False), part


@pytest.mark.parametrize(("index", "rows", "tokens"), [(0, 12, 5), (1, 20, 3)])
def test_the_conditional_half_is_the_half_of_the_rows(pipe: Any, index: int, rows: int, tokens: int) -> None:
    state, part = state_and_part(OpenSora(pipe.transformer), index)
    assert state.hidden.shape == (rows, tokens, 48)
    every = part.qkv(state, slice(0, rows))
    half = part.qkv(state, OpenSora.guided_layout.conditional_rows(rows))
    for whole, some in zip(every, half, strict=True):
        assert whole.shape == (rows, tokens, 3, 16)
        torch.testing.assert_close(some, whole[: rows // 2], rtol=1e-5, atol=1e-5)


def test_sharing_guidance_copies_the_conditional_attention(pipe: Any) -> None:
    """ASC at both sites, written out with the pieces of the model."""
    plan = full(pipe)
    for site in plan.sites:
        plan = plan.with_methods([[Method.FULL] * 2, *[[Method.ASC] * 2] * (STEPS - 1)], site=site)

    def share(_: Any, args: Any, output: Tensor) -> Tensor:
        half = output.shape[0] // 2
        return torch.cat([output[:half], output[:half]]) if calls[0] > 1 else output

    calls = [0]
    counting = pipe.transformer.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    attentions = [part for block in pipe.transformer.blocks for part in (block.attn, block.attn_temp)]
    sharing = [attention.register_forward_hook(share) for attention in attentions]
    expected = sample_opensora(pipe, STEPS)
    for hook in (counting, *sharing):
        hook.remove()
    assert not torch.equal(expected, sample_opensora(pipe, STEPS))
    with ditfastattn.apply(pipe, plan):
        given = sample_opensora(pipe, STEPS)
    assert (given - expected).norm() < 1e-4 * expected.norm()


def test_a_run_of_another_size_is_refused(pipe: Any) -> None:
    with ditfastattn.apply(pipe, full(pipe)):
        with pytest.raises(PlanMismatch, match="frames: the plan has 4, this run 5"):
            sample_opensora(pipe, STEPS, num_frames=5)
        with pytest.raises(PlanMismatch, match="tokens: the plan has 12, this run 16"):
            sample_opensora(pipe, STEPS, height=16)
        sample_opensora(pipe, STEPS)
    with pytest.raises(PlanMismatch, match="layers"):
        ditfastattn.apply(pipe, full(small_opensora(text=False, depth=3)))


def test_another_guidance_is_refused(pipe: Any) -> None:
    with ditfastattn.apply(pipe, full(pipe)):
        with pytest.raises(PlanMismatch, match="guidance scale: the plan has 7, this run 5"):
            sample_opensora(pipe, STEPS, guidance_scale=5.0)
        with pytest.raises(PlanMismatch, match="guidance layout"):
            sample_opensora(pipe, STEPS, guidance_scale=1.0, videos=1)


def test_what_a_plan_would_bypass_is_refused(pipe: Any) -> None:
    plan = full(pipe)
    hook = pipe.transformer.blocks[1].attn_temp.register_forward_hook(lambda *_: None)
    with pytest.raises(ApplyError, match="temporal block 1: attn_temp carries hooks"):
        ditfastattn.apply(pipe, plan)
    hook.remove()
    with pytest.raises(ApplyError, match="call eval"):
        ditfastattn.apply(pipe.transformer.train(), plan)
    pipe.transformer.eval()
    with pytest.raises(ApplyError, match="compile=True"):
        ditfastattn.apply(pipe, plan, compile=True)
    windowed = plan.with_methods([[Method.FULL] * 2, *[[Method.WA_RS] * 2] * (STEPS - 1)])
    with pytest.raises(ApplyError, match="tile order, but STDiT2's blocks"):
        ditfastattn.apply(pipe, windowed.model_copy(update={"token_order": "tile"}))


def test_a_plan_of_a_model_without_frames_is_refused(pipe: Any) -> None:
    plan = full_plan(pipe, STEPS, 7.0)
    image = plan.model.model_copy(update={"temporal": None})
    other = Plan.full(model=image, sampler=plan.sampler, guidance=GuidanceSpec(scale=7.0, layout="cond_first"))
    with pytest.raises(PlanMismatch, match="temporal"):
        ditfastattn.apply(pipe, other)
