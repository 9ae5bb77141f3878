"""Prepared steps with forecasts, reused MLPs and skipped steps: compilations, kinds of steps, and CUDA graphs."""

from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from prepared_runs import run_eagerly, steps_without_waiting
from small_models import full_plan, sample, small_pipeline
from torch._dynamo.utils import counters

from ditfastattn import apply
from plans import Method, Plan
from plans.forecast import feasible

F, C, A, A1, A2 = Method.FULL, Method.ASC, Method.AST, Method.AST_1, Method.AST_2
STEPS = 12

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA graphs")


def every_way(pipe: Any, skips: bool = True) -> Plan:
    """12 steps in which every new cell occurs, in another order in every layer."""
    plan = full_plan(pipe, STEPS).with_mlp()
    times = plan.sampler.timesteps
    output = feasible([F, F, F, F, F, A if skips else F, F, F, A1 if skips else F, F, F, A2 if skips else F], times)
    cycle = [A, F, A1, C, A2, F, A]
    for site, shift in (("attn", 0), ("mlp", 2)):
        columns = [
            feasible(
                [F] + [cycle[(step * (layer + 1) + shift) % 7] if output[step] is F else A for step in range(1, STEPS)],
                times,
            )
            for layer in range(plan.layers)
        ]
        filled = list(zip(*columns, strict=True))
        plan = plan.with_methods(filled, site=site)  # type: ignore[arg-type]
    return plan.skipping(output) if skips else plan


def test_a_few_more_compilations_and_none_while_sampling(graph_breaks_only: None) -> None:
    pipe = small_pipeline()
    plan = every_way(pipe)
    cells = {(site, method) for site, at in plan.sites.items() for row in at.methods for method in row}
    assert {("mlp", method) for method in (F, C, A, A1, A2)} | {("model", m) for m in (F, A, A1, A2)} <= cells
    expected = run_eagerly(pipe, plan)
    with apply(pipe, plan, compile=True) as session:
        first = sample(pipe, steps=STEPS)
        compiled = counters["stats"]["unique_graphs"]
        assert compiled <= 30  # each piece for rows and stored outputs of half a batch or a whole one
        assert torch.equal(sample(pipe, steps=STEPS), first)
        assert counters["stats"]["unique_graphs"] == compiled
        assert "compiled" in str(session.summary())
    assert (first - expected).norm() < 1e-4 * expected.norm()


def test_steps_that_differ_in_weights_alone_are_one_kind(pipe: DiTPipeline) -> None:
    """FORA-like: computed every third step, forecast between. Graphs do not grow with the steps."""
    counts = []
    for steps in (18, 36):
        plan = full_plan(pipe, steps).with_mlp()
        column = feasible([F if step % 3 == 0 else A1 for step in range(steps)], plan.sampler.timesteps)
        for site in ("attn", "mlp"):
            plan = plan.with_methods([[method] * 4 for method in column], site=site)  # type: ignore[arg-type]
        with apply(pipe, plan, graphs=True) as session:
            sample(pipe, steps=steps)
            program = next(iter(session._runner._programs.values()))[0]  # type: ignore[attr-defined]
            counts.append(program.kinds)
    assert counts[0] == counts[1] <= 12


# ------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_captured_forecasts_and_skipped_steps_give_what_eager_steps_give(gpu_pipe: DiTPipeline, compile: bool) -> None:
    plan = every_way(gpu_pipe)
    expected = run_eagerly(gpu_pipe, plan)
    others = run_eagerly(gpu_pipe, plan, labels=(3, 4, 5))
    with apply(gpu_pipe, plan, compile=compile, graphs=True) as session:
        first = sample(gpu_pipe, steps=STEPS)
        assert (first - expected).norm() < 1e-3 * expected.norm()
        assert (sample(gpu_pipe, steps=STEPS, labels=(3, 4, 5)) - others).norm() < 1e-3 * others.norm()
        assert torch.equal(sample(gpu_pipe, steps=STEPS), first)
        summary = session.summary()
        assert "CUDA graphs" in str(summary)
        for site in summary.sites.values():
            assert site.peak_cache_bytes == site.predicted_peak_cache_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_captured_forecasts_in_half_precision(gpu_pipe: DiTPipeline, dtype: torch.dtype) -> None:
    gpu_pipe.to(dtype=dtype)
    plan = every_way(gpu_pipe)
    expected = run_eagerly(gpu_pipe, plan).float()
    with apply(gpu_pipe, plan, graphs=True):
        ours = sample(gpu_pipe, steps=STEPS).float()
    assert (ours - expected).norm() < (0.02 if dtype is torch.float16 else 0.15) * expected.norm()


@pytest.mark.gpu
def test_a_skipped_step_waits_for_nothing(gpu_pipe: DiTPipeline) -> None:
    plan = every_way(gpu_pipe)
    assert steps_without_waiting(gpu_pipe, plan) == plan.steps
