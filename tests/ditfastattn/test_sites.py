"""Two sites inside one block: each by its own cells, window and rows."""

from typing import Any

import pytest
import torch
from block_formula import band
from small_latte import video_plan
from small_models import TRAINING, full_plan
from small_two_sites import FRAMES, TwoSites, TwoSitesAdapter, pipeline_of, small_two_sites

import ditfastattn
from ditfastattn.errors import ApplyError
from ditfastattn.models import REGISTRY, adapt
from ditfastattn.samplers import make_sampler
from plans import Method, Plan

STEPS = 6


@pytest.fixture
def pipe(registry: None) -> Any:
    REGISTRY.add(TwoSites, TwoSitesAdapter)
    return pipeline_of(small_two_sites(), make_sampler("ddim", TRAINING))


@torch.no_grad()
def run(model: Any, plan: Plan, seed: int = 0) -> list[torch.Tensor]:
    """The outputs of all steps on one noise: 2 videos, both branches."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 4, FRAMES, 2, 3, generator=generator).repeat(2, 1, 1, 1, 1)
    prompts = torch.randn(4, 16, generator=generator)
    latents, prompts = (tensor.to(model.head.weight.dtype) for tensor in (latents, prompts))
    return [model(latents, torch.full((4,), t), prompts) for t in plan.sampler.timesteps]


def test_blocks_stand_in_the_order_in_which_their_attention_runs(pipe: Any) -> None:
    adapter = adapt(pipe.transformer)
    assert adapter.places == [("attn", 0), ("temporal", 0), ("attn", 1), ("temporal", 1)]
    assert [str(place) for place in adapter.places[:2]] == ["block 0", "temporal block 0"]
    assert adapter.modules == [(pipe.transformer.blocks[0], range(2)), (pipe.transformer.blocks[1], range(2, 4))]


def test_all_full_changes_no_bit_and_is_taken_off_again(pipe: Any) -> None:
    plan = full_plan(pipe, STEPS)
    plain = run(pipe.transformer, plan)
    before = [dict(module.__dict__) for module in pipe.transformer.modules()]
    with ditfastattn.apply(pipe.transformer, plan) as session:
        assert all(torch.equal(a, b) for a, b in zip(run(pipe.transformer, plan), plain, strict=True))
    assert session.summary().methods == {Method.FULL: 4 * STEPS}
    assert [dict(module.__dict__) for module in pipe.transformer.modules()] == before


@pytest.mark.parametrize("seed", range(3))
def test_cache_bytes_of_each_site_are_as_predicted(pipe: Any, seed: int) -> None:
    plan = video_plan(pipe, STEPS, seed=seed)
    with ditfastattn.apply(pipe.transformer, plan) as session:
        run(pipe.transformer, plan)
        summary = session.summary()
    for site, found in summary.sites.items():
        assert found.peak_cache_bytes == found.predicted_peak_cache_bytes
        counted = [method for row in plan.sites[site].methods for method in row]
        assert found.methods == {method: counted.count(method) for method in set(counted)}
    assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes > 0
    assert summary.peak_cache_bytes <= sum(found.peak_cache_bytes for found in summary.sites.values())
    assert summary.cache_bytes == 0 and "\n  temporal" in str(summary)


def test_each_site_uses_its_own_grid(pipe: Any) -> None:
    """AST after a first step on other inputs shows which attention was left out."""
    plan = full_plan(pipe, STEPS)
    ast = [[Method.FULL] * 2, *[[Method.AST] * 2] * (STEPS - 1)]
    plain = run(pipe.transformer, plan)
    results = []
    for site in plan.sites:
        with ditfastattn.apply(pipe.transformer, plan.with_methods(ast, site=site)) as session:
            results.append(run(pipe.transformer, plan))
        assert session.summary().sites[site].methods[Method.AST] == 2 * (STEPS - 1)
        assert sum(Method.AST in found.methods for found in session.summary().sites.values()) == 1
    assert all(not torch.equal(result[-1], plain[-1]) for result in results)
    assert not torch.equal(results[0][-1], results[1][-1])


# ------------------------------------------------------------------------------------------- against the formula


class Formula:
    """Attention of one site with the five methods on (B, R, N, C); the first videos are the conditional branch."""

    def __init__(self, attention: Any, visible: torch.Tensor) -> None:
        self.attention, self.visible = attention, visible
        self.output = self.residual = torch.empty(0)

    def __call__(self, x: torch.Tensor, method: Method) -> torch.Tensor:
        if method is Method.AST:
            return self.output
        full, window = self.core(x, torch.ones_like(self.visible)), self.core(x, self.visible)
        if method in (Method.FULL, Method.ASC):
            core, self.residual = full, full - window
        else:
            core = window + self.residual
        if method.shares_guidance:
            core = core[[0, 1, 0, 1]]
        if method is Method.ASC:
            self.residual = self.residual[[0, 1, 0, 1]]
        self.output = core @ self.attention.out.weight.T + self.attention.out.bias
        return self.output

    def core(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        qkv = x @ self.attention.qkv.weight.T + self.attention.qkv.bias
        q, k, v = (part.unflatten(-1, (2, 8)) for part in qkv.chunk(3, dim=-1))
        scores = torch.einsum("brihd,brjhd->brhij", q, k) / 8**0.5
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return torch.einsum("brhij,brjhd->brihd", weights, v).flatten(-2)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_by_a_plan_equals_the_formula(pipe: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = pipe.transformer.double(), video_plan(pipe, STEPS, seed=seed)
    with ditfastattn.apply(model, plan):
        ours = run(model, plan)
    visible = {"attn": band(plan.window, range(6)), "temporal": band(plan.window_of("temporal"), range(FRAMES))}
    step = 0
    for layer, block in enumerate(model.blocks):
        spatial, temporal = Formula(block.spatial, visible["attn"]), Formula(block.temporal, visible["temporal"])

        def forward(
            hidden: torch.Tensor,
            shift: torch.Tensor,
            layer: int = layer,
            block: Any = block,
            spatial: Formula = spatial,
            temporal: Formula = temporal,
        ) -> torch.Tensor:
            x = hidden.view(4, FRAMES, 6, 16)
            x = x + spatial(x + shift[:, None], plan.methods[step][layer])
            method = plan.sites["temporal"].methods[step][layer]
            x = x + temporal(x.transpose(1, 2), method).transpose(1, 2)
            x = x + block.mlp(torch.tanh(x) * shift[:, None])
            return x.reshape(4, FRAMES * 6, 16)

        monkeypatch.setattr(block, "forward", forward)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, FRAMES, 2, 3, generator=generator).repeat(2, 1, 1, 1, 1)
    prompts = torch.randn(4, 16, generator=generator)
    with torch.no_grad():
        for step, t in enumerate(plan.sampler.timesteps):
            expected = model(latents.double(), torch.full((4,), t), prompts.double())
            torch.testing.assert_close(ours[step], expected, rtol=1e-9, atol=1e-9)


def test_what_has_no_prepared_steps_says_so(pipe: Any) -> None:
    with pytest.raises(ApplyError, match="TwoSites cannot be run with compile=True or graphs=True"):
        ditfastattn.apply(pipe.transformer, full_plan(pipe, STEPS), compile=True)
