"""Forecasts, reused MLPs and skipped steps, eager and prepared, against the model's own modules in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given
from hypothesis import strategies as st
from reused_outputs import TIMES, expected_outputs, mixed_plan, newton, subject
from small_models import full_plan, sample, small_pipeline
from torch import Tensor

from ditfastattn import apply
from ditfastattn.cache import Cell, LayerCache
from ditfastattn.errors import ApplyError, StepError
from ditfastattn.forecast import extrapolate, reused_output
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.skip import form_of
from plans import Method, MlpShape, Plan, PlanMismatch, SiteName
from plans.forecast import feasible, forecast_weights
from plans.macs import besides

F, C, A, A1, A2 = Method.FULL, Method.ASC, Method.AST, Method.AST_1, Method.AST_2

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA graphs")


@torch.no_grad()
def run(call: Callable[[float], Tensor], first: int = 0) -> list[Tensor]:
    return [call(timestep) for timestep in TIMES[first:]]


def close(ours: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> bool:
    assert len(ours) == len(expected)
    return all(bool((a - b).norm() < tolerance * b.norm()) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(order=st.integers(1, 2), seed=st.integers(0, 999))
def test_a_forecast_is_newtons_in_float64(dtype: torch.dtype, order: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(2, 3, 5, generator=generator).to(dtype) for _ in range(order + 1)]
    times = torch.randperm(1000, generator=generator)[: order + 2].double().tolist()
    ours = extrapolate(outputs, forecast_weights(times[-1], times[:-1]))
    assert ours.dtype == dtype
    exact = newton([output.double() for output in outputs], times[:-1], times[-1])
    size = sum(
        abs(weight) * output.abs().max()
        for weight, output in zip(forecast_weights(times[-1], times[:-1]), outputs, strict=True)
    )
    wide = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 4 * float(size)
    wide += torch.finfo(torch.float64).eps * 100 * float(size)  # Newton's own rounding
    assert ((ours.double() - exact).abs() <= wide + torch.finfo(dtype).eps * exact.abs()).all()


def test_halves_are_forecast_as_halves_and_beside_a_whole_batch_as_two() -> None:
    whole, half = torch.randn(4, 3).double(), torch.randn(2, 3).double()
    cell = Cell(A1, weights=(2.0, -1.0))
    both = reused_output(cell, LayerCache(half, None, (half * 3,)), 4, Layout.COND_FIRST)
    assert both.shape == (2, 3) and torch.equal(both, half * 2 - half * 3)
    mixed = reused_output(cell, LayerCache(half, None, (whole,)), 4, Layout.COND_FIRST)
    assert torch.equal(mixed, torch.cat([half, half]) * 2 - whole)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["dit", "native", "pixart", "latte", "opensora"])
def test_eager_steps_are_what_the_plan_says(name: str, seed: int) -> None:
    tested = subject(name)
    plan = mixed_plan(tested.model, seed)
    expected = expected_outputs(tested, plan)
    tolerance = 1e-5 if name == "opensora" else 1e-10  # Open-Sora's output is float32
    with apply(tested.model, plan) as session:
        assert close(run(tested.call), expected, tolerance)
        assert close(run(tested.call), expected, tolerance)
        summary = session.summary()
    assert set(summary.sites) == set(plan.sites)
    for site in summary.sites.values():
        assert site.peak_cache_bytes == site.predicted_peak_cache_bytes
    assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes > 0 == session.summary().cache_bytes
    assert summary.methods == {
        method: 2 * sum(row.count(method) for site in plan.sites.values() for row in site.methods)
        for method in summary.methods
    }
    assert f"with {besides(plan)} " in str(summary) and "MLPs" in besides(plan)


@pytest.mark.parametrize("left_out", ["cross", "mlp"])
@pytest.mark.parametrize("name", ["pixart", "latte", "opensora"])
def test_a_site_that_a_plan_leaves_out_is_computed(name: str, left_out: SiteName) -> None:
    tested = subject(name)
    plan = mixed_plan(tested.model, 4, without=(left_out,))
    assert left_out not in plan.sites and len(plan.sites) == len(tested.parts)  # the model's own takes its place
    expected = expected_outputs(tested, plan)
    with apply(tested.model, plan):
        eager = run(tested.call)
    assert close(eager, expected, 1e-5 if name == "opensora" else 1e-10)
    if name == "pixart":
        with apply(tested.model, plan, graphs=True):
            assert close(run(tested.call), eager)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("name", ["dit", "native", "pixart"])
def test_prepared_steps_give_what_eager_steps_give(name: str, guided: bool) -> None:
    tested = subject(name)
    for seed in range(3):
        plan = mixed_plan(tested.model, seed, guided=guided, paper=True, skips=seed < 2)
        call = tested.call if guided else _conditional(name, tested.call)
        with apply(tested.model, plan):
            eager = run(call)
        with apply(tested.model, plan, graphs=True) as session:
            assert close(run(call), eager)
            assert close(run(call), eager)
            summary = session.summary()
        for site in summary.sites.values():
            assert site.peak_cache_bytes == site.predicted_peak_cache_bytes


def test_prepared_forecasts_of_attention_alone() -> None:
    """A plan without the site ``mlp``: the blocks' ends are not cut in two."""
    tested = subject("dit")
    mixed = mixed_plan(tested.model, 0, skips=False)
    model = mixed.model.model_copy(update={"mlp": None})
    plan = Plan.full(model=model, sampler=mixed.sampler, guidance=mixed.guidance)
    plan = plan.with_methods([[method] * plan.layers for method in feasible([F, F, A1, F, A2, A2, C, A1, A1], TIMES)])
    with apply(tested.model, plan):
        eager = run(tested.call)
    with apply(tested.model, plan, graphs=True):
        assert close(run(tested.call), eager)


def _conditional(name: str, call: Any) -> Callable[[float], Tensor]:
    """The same call without an unconditional branch."""
    cells = dict(zip(call.__code__.co_freevars, call.__closure__, strict=True))
    if name == "pixart":
        first = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
        cells["latents"].cell_contents = first
    else:
        cells["labels"].cell_contents = torch.tensor([1, 2, 3, 4])
    return call


def test_nothing_reused_is_the_model_to_the_bit() -> None:
    pipe = small_pipeline()
    plan = full_plan(pipe).with_mlp(MlpShape(layers=4, hidden=192)).skipping((F,) * 8)
    expected = sample(pipe)
    with apply(pipe, plan) as session:
        assert torch.equal(sample(pipe), expected)
    assert session.summary().peak_cache_bytes == 0


@pytest.mark.parametrize("graphs", [False, True])
def test_a_skipped_step_calls_nothing_of_the_model(graphs: bool) -> None:
    pipe = small_pipeline()
    calls: list[object] = []
    pipe.transformer.pos_embed.register_forward_hook(lambda *_: calls.append(1))
    plan = full_plan(pipe).skipping((F, F, A1, F, A, F, A2, A2))
    if graphs:
        pipe.transformer.pos_embed._forward_hooks.clear()
    with apply(pipe, plan, graphs=graphs) as session:
        sample(pipe)
    assert graphs or len(calls) == 4
    assert "skipped          4 of 8 steps, in which no layer runs" in str(session.summary()).splitlines()
    with apply(pipe, full_plan(pipe)) as session:
        assert "skipped" not in str(session.summary())
    with apply(pipe, plan, graphs=graphs) as session:
        sample(pipe)
    model = session.summary().sites["model"]
    assert model.methods == {F: 4, A1: 1, A: 1, A2: 2}
    assert model.peak_cache_bytes == 3 * 4 * 8 * 8 * 8 * 4  # three outputs of 4 rows of 8 channels of 8 x 8 in float32
    assert session.summary().sites["attn"].peak_cache_bytes == 0


@pytest.mark.parametrize("graphs", [False, True])
def test_outputs_are_the_callers_to_change(graphs: bool) -> None:
    tested = subject("dit")
    plan = mixed_plan(tested.model, 0).skipping((F, A, A, F, A1, A, F, A2, A2))
    plan = plan.with_methods([[F] * 4 if method is F else [A] * 4 for method in plan.column(0, "model")])
    with apply(tested.model, plan, graphs=graphs):
        expected = run(tested.call)
        changed = [output.clone() for output in run(lambda t: tested.call(t))]
        spoilt = []
        for timestep in TIMES:
            output = tested.call(timestep).detach()
            spoilt.append(output.clone())
            output.zero_()
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(expected, changed, spoilt, strict=True))


@pytest.mark.parametrize("first", [1, 2, 4])
def test_a_run_may_begin_in_the_middle(first: int) -> None:
    tested = subject("dit")
    for seed in range(3):
        plan = mixed_plan(tested.model, seed, paper=True)
        runs = []
        for graphs in (False, True):
            with apply(tested.model, plan, graphs=graphs) as session:
                session.expect_new_run()
                runs.append(run(tested.call, first))
                summary = session.summary()
            assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes
        assert close(runs[1], runs[0])
        assert torch.equal(runs[0][0], run(tested.call, first)[0])  # FULL, whatever the plan has there


def test_a_skipped_output_comes_as_the_models_own_does() -> None:
    output, other = torch.zeros(2, 3), torch.ones(2, 3)
    assert form_of(output)(other) is other
    assert form_of((output,))(other) == (other,)
    made = form_of(Transformer2DModelOutput(sample=output))(other)
    assert isinstance(made, Transformer2DModelOutput) and made.sample is other
    for several in ((output, None), {"sample": output, "extra": output}, [output]):
        with pytest.raises(StepError, match="a plan that skips steps needs one output"):
            form_of(several)


def test_a_plan_of_other_mlps_is_refused(pipe: Any) -> None:
    wide = full_plan(pipe).with_mlp(MlpShape(layers=4, hidden=100))
    with pytest.raises(PlanMismatch, match="MLPs' hidden width: the plan has 100, this model 192"):
        apply(pipe, wide)


def test_an_mlp_without_products_that_are_known_is_out_of_reach() -> None:
    """What a quantiser puts in a Linear's place still computes: plans of attention follow, not those of MLPs."""

    class Quantised(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.weight, self.bias = linear.weight, linear.bias

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.weight, self.bias)

    tested = subject("dit")
    plan = mixed_plan(tested.model, 0)
    for block in tested.model.transformer_blocks:
        block.ff.net[0].proj, block.ff.net[2] = Quantised(block.ff.net[0].proj), Quantised(block.ff.net[2])
    with pytest.raises(ApplyError, match="plans cannot reach the MLPs of this model"):
        apply(tested.model, plan)
    plain = run(tested.call)
    attention = Plan.full(model=adapt(tested.model).spec(), sampler=plan.sampler, guidance=plan.guidance)
    with apply(tested.model, attention):
        assert all(torch.equal(a, b) for a, b in zip(run(tested.call), plain, strict=True))
