"""The site ``cross``: cross-attention written out in float64, under prompts of different lengths."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from reused_outputs import TIMES, newton
from small_latte import sample_latte, small_latte_pipeline
from small_models import full_plan, small_pipeline
from small_opensora import sample_opensora, sizes, small_opensora, small_stdit2
from small_pixart import WIDTH, WORDS, prompts, sample_pixart, small_pixart, small_pixart_pipeline
from torch import Tensor

from ditfastattn import apply
from ditfastattn.errors import ApplyError
from ditfastattn.models import adapt
from ditfastattn.models.opensora import OpenSora
from plans import CrossShape, GuidanceSpec, Method, Plan, PlanMismatch, SamplerSpec

F, C, A, A1, A2 = Method.FULL, Method.ASC, Method.AST, Method.AST_1, Method.AST_2
COLUMNS = {
    "AST": (F, A, A, F, A, F, F, A, A),
    "ASC": (F, C, C, F, C, C, F, F, C),
    "shared and reused": (F, C, A, A, F, A, C, A, F),
    "forecasts": (F, F, A1, F, A2, C, A2, A1, A),
}

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA graphs")


def pixart(layers: int = 3) -> tuple[Any, Callable[[float], Tensor]]:
    """A model in float64 and its call on two prompts and two negative ones, each of another length."""
    generator = torch.Generator().manual_seed(1)
    model = small_pixart(layers).double()
    latents = torch.randn(2, 4, 8, 8, generator=generator).double().repeat(2, 1, 1, 1)
    text = torch.randn(4, WORDS, WIDTH, generator=generator).double()
    mask = (torch.arange(WORDS) < torch.tensor([[1], [5], [3], [2]])).double()
    given = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
    given["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}  # type: ignore[assignment]
    return model, lambda t: model(latents * (1 + t / 1000), timestep=torch.full((4,), t), **given).sample


def opensora() -> tuple[Any, Callable[[float], Tensor]]:
    """The same of two videos; the output is float32 whatever the weights are."""
    generator = torch.Generator().manual_seed(1)
    model = small_stdit2().double()
    latents = torch.randn(2, 4, 4, 6, 8, generator=generator).double().repeat(2, 1, 1, 1, 1)
    text = torch.randn(4, 1, WORDS, WIDTH, generator=generator).double()
    mask = (torch.arange(WORDS) < torch.tensor([[2], [4], [5], [1]])).long()
    told = {name: value.double() for name, value in sizes().items()}
    return model, lambda t: model(latents * (1 + t / 1000), torch.full((4,), t), text, mask, **told)


SUBJECTS = {"pixart": pixart, "opensora": opensora}


def plan_for(model: Any, column: Sequence[Method]) -> Plan:
    """Cross-attention by ``column`` in every layer, one step later in odd ones; all else FULL."""
    adapter = adapt(model)
    plan = Plan.full(
        model=adapter.spec_of(4, 6, 8) if isinstance(adapter, OpenSora) else adapter.spec(),
        sampler=SamplerSpec(class_name="ByHand", settings={}, timesteps=TIMES),
        guidance=GuidanceSpec(scale=4.0, layout=adapter.guided_layout.value),
    ).with_cross(CrossShape(layers=adapter.cross_layers, words=WORDS))
    columns = [tuple(column) if layer % 2 == 0 else (F, *column[:-1]) for layer in range(adapter.cross_layers)]
    return plan.with_methods(list(zip(*columns, strict=True)), site="cross")


def attended(module: Any, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the words that count, head by head, and the out-projection.

    ``mask``: True where a word counts (B, L), or added to the scores (B, 1, L).
    """
    if hasattr(module, "to_q"):
        q, k, v, last = (linear for linear in (module.to_q, module.to_k, module.to_v, module.to_out[0]))
        queries, keys, values = x @ q.weight.T + q.bias, text @ k.weight.T + k.bias, text @ v.weight.T + v.bias
    else:
        queries, last = x @ module.q_linear.weight.T + module.q_linear.bias, module.proj
        keys, values = (text @ module.kv_linear.weight.T + module.kv_linear.bias).chunk(2, dim=-1)
    heads, found = module.heads, []
    for q, k, v in zip(*(part.chunk(heads, dim=-1) for part in (queries, keys, values)), strict=True):
        scores = torch.einsum("bnd,bld->bnl", q, k) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores + mask if mask.dtype != torch.bool else scores.masked_fill(~mask[:, None], -torch.inf)
        found.append(torch.einsum("bnl,bld->bnd", scores.softmax(-1), v))
    return torch.cat(found, dim=-1) @ last.weight.T + last.bias


class Formula:
    """One cross-attention by one column of a plan."""

    def __init__(self, module: Any, column: Sequence[Method], conditional: slice, now: list[int]) -> None:
        self.module, self.column, self.conditional, self.now = module, column, conditional, now
        self.outputs: list[Tensor] = []
        self.times: list[float] = []

    def __call__(self, x: Tensor, text: Tensor | None = None, mask: Tensor | None = None, **given: Any) -> Tensor:
        method, time = self.column[self.now[0]], TIMES[self.now[0]]
        if method.reuses_output:
            count = {A: 1, A1: 2, A2: 3}[method]
            return newton(self.outputs[-count:], self.times[-count:], time)
        text, mask = (given["encoder_hidden_states"], given["attention_mask"]) if given else (text, mask)
        output = attended(self.module, x, text, mask)  # type: ignore[arg-type]
        if method is C:
            output = output[self.conditional].repeat(2, 1, 1)
        self.outputs.append(output)
        self.times.append(time)
        return output


@torch.no_grad()
def by_hand(model: Any, call: Callable[[float], Tensor], plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    now = [0]
    conditional = slice(0, 2) if plan.guidance.layout == "cond_first" else slice(2, 4)
    modules = [b.cross_attn for b in model.blocks] if hasattr(model, "blocks") else None
    with monkeypatch.context() as patch:
        for layer, module in enumerate(modules or [b.attn2 for b in model.transformer_blocks]):
            patch.setattr(module, "forward", Formula(module, plan.column(layer, "cross"), conditional, now))
        found = []
        for now[0], time in enumerate(TIMES):
            found.append(call(time))
        return found


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", SUBJECTS)
@torch.no_grad()
def test_every_method_is_the_formula(name: str, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = SUBJECTS[name]()
    plan = plan_for(model, COLUMNS[column])
    expected = by_hand(model, call, plan, monkeypatch)
    tolerance = 1e-5 if name == "opensora" else 1e-10
    for graphs in (False, True) if name == "pixart" else (False,):
        with apply(model, plan, graphs=graphs) as session:
            ours = [call(time) for time in TIMES]
            summary = session.summary()
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert summary.sites["cross"].peak_cache_bytes == summary.sites["cross"].predicted_peak_cache_bytes


def test_a_shared_output_is_kept_once() -> None:
    """Three layers of 16 tokens of 48 channels in float64: what ASC stores for AST is of two rows, FULL's of four."""
    row = 16 * 48 * 8
    for column, rows in (((F, C, A) + (F,) * 6, 2), ((F, A) + (F,) * 7, 4), (((F, F, C, A1) + (F,) * 5), 6)):
        model, call = pixart()
        plan = plan_for(model, column)
        plan = plan.with_methods([[method] * 3 for method in column], site="cross")
        with apply(model, plan) as session, torch.no_grad():
            for time in TIMES:
                call(time)
        assert session.summary().peak_cache_bytes == 3 * rows * row


@pytest.mark.parametrize(
    ("made", "sampled"),
    [
        (small_pixart_pipeline, sample_pixart),
        (small_opensora, sample_opensora),
        (small_latte_pipeline, sample_latte),
    ],
)
def test_nothing_reused_is_the_model_to_the_bit(made: Any, sampled: Any) -> None:
    pipe = made("ddim") if made is small_opensora else made()
    steps, guidance = 4, 7.0 if made is small_opensora else 4.0
    adapter = adapt(pipe.transformer)
    model = adapter.spec_of(4, 6, 8) if isinstance(adapter, OpenSora) else adapter.spec()
    bare = full_plan(pipe, steps, guidance)
    plan = Plan.full(model=model, sampler=bare.sampler, guidance=bare.guidance).with_cross()
    assert plan.model.shape("cross").layers == adapter.cross_layers
    expected = sampled(pipe, steps=steps, guidance_scale=guidance)
    for each in (plan, plan.with_mlp(adapter.mlp)):
        with apply(pipe, each) as session:
            assert torch.equal(sampled(pipe, steps=steps, guidance_scale=guidance), expected)
        assert session.summary().peak_cache_bytes == 0
        assert session.summary().sites["cross"].methods == {F: steps * adapter.cross_layers}


@torch.no_grad()
def test_prepared_steps_without_reuse_do_the_same_with_the_site_and_without() -> None:
    model, call = pixart()
    plan = plan_for(model, (F,) * 9)
    without = Plan.full(model=plan.model.required, sampler=plan.sampler, guidance=plan.guidance)
    runs = []
    for each in (plan, without):
        with apply(model, each, graphs=True):
            runs.append([call(time) for time in TIMES])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@torch.no_grad()
def test_compiled_pieces_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as a whole; no code is made of it, which takes long."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, call = pixart(2)
    plan = plan_for(model, (F, C, A, F, F, A1, A, C, F))
    with apply(model, plan):
        expected = [call(time) for time in TIMES]
    with apply(model, plan, compile=True):
        for time, eager in zip(TIMES, expected, strict=True):
            torch.testing.assert_close(call(time), eager, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_captured_steps_follow_it(compile: bool) -> None:
    pipe = small_pixart_pipeline().to("cuda")
    adapter, bare = adapt(pipe.transformer), full_plan(pipe, 9, 4.0)
    plan = Plan.full(model=adapter.spec(), sampler=bare.sampler, guidance=bare.guidance)
    plan = plan.with_cross(CrossShape(layers=adapter.cross_layers, words=WORDS)).with_mlp(adapter.mlp)
    for site, column in (("cross", (F, C, A, F, F, A1, A, C, F)), ("mlp", (F, F, A1, F, A2, A, F, C, A))):
        plan = plan.with_methods([[method] * adapter.cross_layers for method in column], site=site)  # type: ignore[arg-type]
    given = {name: value.to("cuda") for name, value in prompts().items()}
    with apply(pipe, plan):
        expected = sample_pixart(pipe, steps=9, **given)
    with apply(pipe, plan, compile=compile, graphs=True) as session:
        for _ in range(2):
            assert (sample_pixart(pipe, steps=9, **given) - expected).norm() < 1e-3 * expected.norm()
        assert "CUDA graphs" in str(session.summary())


def test_a_model_without_it_refuses_a_plan_that_has_it() -> None:
    pipe = small_pipeline()
    plan = full_plan(pipe).with_cross(CrossShape(layers=4, words=5))
    with pytest.raises(ApplyError, match="site cross, and this model has no cross-attention that plans can reach"):
        apply(pipe, plan)
    model, _ = pixart()
    other = plan_for(model, COLUMNS["AST"])
    other = Plan.full(model=other.model.required, sampler=other.sampler, guidance=other.guidance)
    with pytest.raises(PlanMismatch, match="cross-attention layers: the plan has 2, this model 3"):
        apply(model, other.with_cross(CrossShape(layers=2, words=5)))
    apply(model, other.with_cross(CrossShape(layers=3, words=77))).remove()  # any call has other words
