"""A plan on a pipeline and on a bare transformer: right, or refused before anything wrong is computed."""

from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from small_models import everything, full_plan, label_denoiser, random_plan, same, sample, small_pipeline

import ditfastattn
from ditfastattn.errors import StepError
from ditfastattn.sampling import sample_latents
from plans import Method, Plan, PlanMismatch, Window

STEPS = 8


# ------------------------------------------------------------------------------------------------ nothing changes


@pytest.mark.parametrize("sampler", ["dpm", "ddim", "heun"])
@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_all_full_is_bit_identical(sampler: str, guidance_scale: float) -> None:
    pipe = small_pipeline(sampler=sampler)
    expected = sample(pipe, STEPS, guidance_scale=guidance_scale)
    with ditfastattn.apply(pipe, full_plan(pipe, STEPS, guidance_scale)):
        assert torch.equal(sample(pipe, STEPS, guidance_scale=guidance_scale), expected)


def test_full_steps_that_store_are_bit_identical_too(pipe: DiTPipeline) -> None:
    plan = full_plan(pipe, STEPS)
    grid = [list(row) for row in plan.methods]
    grid[-1] = [Method.WA_RS] * plan.layers  # every earlier step is FULL; step 6 stores the residual
    steps_seen: list[torch.Tensor] = []
    pipe.transformer.register_forward_hook(lambda *call: steps_seen.append(call[2][0].clone()))
    sample(pipe, STEPS)
    with ditfastattn.apply(pipe, plan.with_methods(grid)):
        sample(pipe, STEPS)
    full, compressed = steps_seen[:STEPS], steps_seen[STEPS:]
    assert all(torch.equal(a, b) for a, b in zip(full[:-1], compressed[:-1], strict=True))
    assert not torch.equal(full[-1], compressed[-1])


def test_remove_restores_every_attribute(pipe: DiTPipeline) -> None:
    weights = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    before = everything(pipe)
    expected = sample(pipe, STEPS)
    session = ditfastattn.apply(pipe, random_plan(pipe, STEPS))
    assert not torch.equal(sample(pipe, STEPS), expected)
    session.remove()
    session.remove()
    assert same(before, everything(pipe))
    assert all(torch.equal(weights[name], value) for name, value in pipe.transformer.state_dict().items())
    assert torch.equal(sample(pipe, STEPS), expected)


def test_a_run_that_fails_leaves_nothing_behind(pipe: DiTPipeline) -> None:
    before = everything(pipe)
    with pytest.raises(RuntimeError, match="mine"), ditfastattn.apply(pipe, random_plan(pipe, STEPS)):
        raise RuntimeError("mine")
    assert same(before, everything(pipe))


# ---------------------------------------------------------------------------------------------------- right runs


def test_two_runs_in_a_row_and_one_after_an_abort(pipe: DiTPipeline) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)) as session:
        first = sample(pipe, STEPS)
        assert torch.equal(sample(pipe, STEPS), first)
        calls = 0

        def stop(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 4:
                raise KeyboardInterrupt

        handle = pipe.transformer.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            sample(pipe, STEPS)
        handle.remove()
        assert torch.equal(sample(pipe, STEPS), first)
        summary = session.summary()
        assert (summary.runs_begun, summary.runs_finished) == (4, 3)


def test_another_batch_size_is_another_run(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    with ditfastattn.apply(pipe, plan):
        sample(pipe, STEPS, (1, 2, 3))
        after_another = sample(pipe, STEPS, (5,))
    with ditfastattn.apply(pipe, plan):
        assert torch.equal(sample(pipe, STEPS, (5,)), after_another)


def test_two_pipelines_interleaved() -> None:
    pipes = [small_pipeline(seed=0), small_pipeline(seed=1)]
    denoisers = [label_denoiser(pipe, (1, 2), 4.0) for pipe in pipes]
    plans = [random_plan(pipe, STEPS, seed=seed) for seed, pipe in enumerate(pipes)]

    def alone(index: int) -> torch.Tensor:
        with ditfastattn.apply(pipes[index].transformer, plans[index]):
            return sample_latents(denoisers[index], pipes[index].scheduler, STEPS, 0, range(2))

    expected = [alone(0), alone(1)]
    with ditfastattn.apply(pipes[0].transformer, plans[0]), ditfastattn.apply(pipes[1].transformer, plans[1]):
        inner: list[torch.Tensor] = []

        def other(step: int) -> None:  # a whole run of the second inside the first
            if step == 3:
                inner.append(sample_latents(denoisers[1], pipes[1].scheduler, STEPS, 0, range(2)))

        outer = sample_latents(denoisers[0], pipes[0].scheduler, STEPS, 0, range(2), on_step=other)
    assert torch.equal(outer, expected[0]) and torch.equal(inner[0], expected[1])


def test_heun_calls_the_model_twice_a_step() -> None:
    pipe = small_pipeline(sampler="heun")
    plan = random_plan(pipe, STEPS)
    assert plan.steps == 2 * STEPS - 1
    with ditfastattn.apply(pipe, plan) as session:
        sample(pipe, STEPS)
        assert sum(session.summary().methods.values()) == plan.steps * plan.layers


@torch.no_grad()
def test_bare_transformer_called_as_module_and_by_forward(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    labels = torch.tensor([1, 2, 1000, 1000])

    def run(call: Any) -> list[torch.Tensor]:
        return [call(latents, timestep=torch.full((4,), t), class_labels=labels).sample for t in plan.sampler.timesteps]

    plain = run(pipe.transformer)
    with ditfastattn.apply(pipe.transformer, plan):
        as_module, as_forward = run(pipe.transformer), run(pipe.transformer.forward)
    assert all(torch.equal(a, b) for a, b in zip(as_module, as_forward, strict=True))
    assert not torch.equal(plain[-1], as_module[-1])


@torch.no_grad()
def test_a_run_that_starts_in_the_middle_begins_uncompressed(pipe: DiTPipeline) -> None:
    plan = full_plan(pipe, STEPS).with_methods([[Method.FULL] * 4, *[[Method.AST] * 4] * (STEPS - 1)])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    labels = torch.tensor([1, 2, 1000, 1000])

    def call(step: int) -> torch.Tensor:
        return pipe.transformer(latents, torch.full((4,), plan.sampler.timesteps[step]), labels).sample

    uncompressed = call(3)
    with ditfastattn.apply(pipe, plan) as session:
        pipe.scheduler.set_timesteps(STEPS)
        output = call(3)
        assert torch.equal(output, uncompressed)
        guided = output[2:, :4] + 4.0 * (output[:2, :4] - output[2:, :4])
        pipe.scheduler.step(guided, pipe.scheduler.timesteps[3], latents[:2])
        call(4)
        assert session.summary().methods == {Method.FULL: 4, Method.AST: 4}
    with ditfastattn.apply(pipe.transformer, plan) as session:
        with pytest.raises(StepError, match="expect_new_run"):
            call(3)
        session.expect_new_run()
        assert torch.equal(call(3), uncompressed)


# ---------------------------------------------------------------------------------------------------- the summary


@pytest.mark.parametrize("seed", range(4))
def test_cache_bytes_are_as_predicted_and_freed(pipe: DiTPipeline, seed: int) -> None:
    plan: Plan = random_plan(pipe, STEPS, seed=seed)
    with ditfastattn.apply(pipe, plan) as session:
        sample(pipe, STEPS)
        summary = session.summary()
    assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes > 0
    assert summary.cache_bytes == 0
    counted = {m: sum(row.count(m) for row in plan.methods) for m in Method}
    assert summary.methods == {m: n for m, n in counted.items() if n}
    assert summary.kernel == "sdpa" and "attention MACs" in str(summary)


def test_a_plan_that_reuses_nothing_stores_nothing(pipe: DiTPipeline) -> None:
    plan = full_plan(pipe, STEPS).with_methods([[Method.FULL] * 4, *[[Method.ASC] * 4] * (STEPS - 1)])
    with ditfastattn.apply(pipe, plan) as session:
        sample(pipe, STEPS)
        assert session.summary().peak_cache_bytes == 0


def test_flex_and_sdpa_give_the_same_images(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    with ditfastattn.apply(pipe, plan, kernel="sdpa"):
        reference = sample(pipe, STEPS)
    with ditfastattn.apply(pipe, plan, kernel="flex"):
        torch.testing.assert_close(sample(pipe, STEPS), reference, rtol=0, atol=1e-4)


def test_the_window_matters(pipe: DiTPipeline) -> None:
    plan = full_plan(pipe, STEPS).with_methods([[Method.FULL] * 4, *[[Method.WA_RS] * 4] * (STEPS - 1)])
    images = []
    for window in (Window(left=0, right=0), Window(left=2, right=2), Window(left=16, right=16)):
        with ditfastattn.apply(pipe, plan.model_copy(update={"window": window})):
            images.append(sample(pipe, STEPS))
    assert not torch.equal(images[0], images[1])
    torch.testing.assert_close(images[2], sample(pipe, STEPS), rtol=0, atol=1e-4)  # a window of everything is FULL


# --------------------------------------------------------------------------------------------------------- GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_full_is_bit_identical_on_the_gpu(dtype: torch.dtype) -> None:
    pipe = small_pipeline().to("cuda", dtype)
    expected = sample(pipe, STEPS)
    with ditfastattn.apply(pipe, full_plan(pipe, STEPS)):
        assert torch.equal(sample(pipe, STEPS), expected)


@pytest.mark.gpu
def test_a_compressed_run_on_the_gpu_is_that_of_the_cpu() -> None:
    pipe = small_pipeline()
    plan = random_plan(pipe, STEPS)
    with ditfastattn.apply(pipe, plan):
        expected = sample(pipe, STEPS)
    pipe.to("cuda")
    for kernel in ("sdpa", "flex"):
        with ditfastattn.apply(pipe, plan, kernel=kernel) as session:
            torch.testing.assert_close(sample(pipe, STEPS).cpu(), expected, rtol=0, atol=5e-3)
            summary = session.summary()
        assert summary.kernel == kernel
        assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_guidance_scale_is_read_in_half_precision(dtype: torch.dtype) -> None:
    pipe = small_pipeline().to("cuda", dtype)
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)):
        sample(pipe, STEPS)
        with pytest.raises(PlanMismatch, match="guidance scale"):
            sample(pipe, STEPS, guidance_scale=3.5)
