"""A plan on a pipeline and on a bare transformer: right, or refused before anything wrong is computed."""

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import DiTPipeline
from small_models import full_plan, random_plan, sample, small_pipeline

import ditfastattn
from ditfastattn.errors import ApplyError, KernelError, StepError
from ditfastattn.samplers import make_sampler
from ditfastattn.sampling import Denoiser, sample_latents
from plans import GuidanceSpec, Method, Plan, PlanMismatch, Window, save

STEPS = 8


def everything(pipe: DiTPipeline) -> list[dict[str, Any]]:
    """Every attribute of every module and of the scheduler."""
    return [dict(owner.__dict__) for owner in (*pipe.transformer.modules(), pipe.scheduler)]


def same(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    """Equal keys in equal order, and the very same objects behind them, but for what the sampler itself moves."""
    moving = ("_step_index", "timesteps", "sigmas", "model_outputs", "lower_order_nums", "num_inference_steps")
    return all(
        list(a) == list(b) and all(a[k] is b[k] for k in a if k not in moving)
        for a, b in zip(before, after, strict=True)
    )


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
    denoisers = [Denoiser(pipe.transformer, (1, 2), 4.0) for pipe in pipes]
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
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
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
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2, 1000, 1000])

    def call(step: int) -> torch.Tensor:
        return pipe.transformer(latents, torch.full((4,), plan.sampler.timesteps[step]), labels).sample

    uncompressed = call(3)
    with ditfastattn.apply(pipe, plan) as session:
        pipe.scheduler.set_timesteps(STEPS)
        assert torch.equal(call(3), uncompressed)
        call(4)
        assert session.summary().methods == {Method.FULL: 4, Method.AST: 4}
    with ditfastattn.apply(pipe.transformer, plan) as session:
        with pytest.raises(StepError, match="expect_new_run"):
            call(3)
        session.expect_new_run()
        assert torch.equal(call(3), uncompressed)


# -------------------------------------------------------------------------------------------------- refused runs


def test_another_number_of_steps_is_refused_before_the_first_call(pipe: DiTPipeline) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)) as session:
        with pytest.raises(PlanMismatch, match="steps: the plan has 8, this sampler 9"):
            sample(pipe, STEPS + 1)
        assert session.summary().runs_begun == 0
        sample(pipe, STEPS)


def test_a_run_without_guidance_is_refused_by_a_guided_plan(pipe: DiTPipeline) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)), pytest.raises(PlanMismatch, match="guidance layout"):
        sample(pipe, STEPS, guidance_scale=1.0)
    with (
        ditfastattn.apply(pipe, random_plan(pipe, STEPS, guidance_scale=1.0)),
        pytest.raises(PlanMismatch, match="this batch holds both"),
    ):
        sample(pipe, STEPS, guidance_scale=4.0)


@pytest.mark.parametrize("scale", [1.5, 3.9, 4.5, 7.0])
def test_another_guidance_scale_is_refused_before_anything_compressed(pipe: DiTPipeline, scale: float) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)) as session:
        with pytest.raises(PlanMismatch, match=f"guidance scale: the plan has 4, this run {scale:g}"):
            sample(pipe, STEPS, guidance_scale=scale)
        assert set(session.summary().methods) == {Method.FULL}


@torch.no_grad()
def test_guidance_branches_in_separate_calls_are_refused(pipe: DiTPipeline) -> None:
    latents = torch.randn(2, 4, 8, 8)
    plan = full_plan(pipe, STEPS, guidance_scale=1.0)
    plan = plan.with_methods([[Method.FULL] * 4, *[[Method.AST] * 4] * (STEPS - 1)])
    first, second = plan.sampler.timesteps[:2]
    with ditfastattn.apply(pipe.transformer, plan):
        pipe.transformer(latents, torch.full((2,), first), torch.tensor([1, 2]))
        pipe.transformer(latents, torch.full((2,), first), torch.tensor([1000, 1000]))
        with pytest.raises(StepError, match="another condition"):
            pipe.transformer(latents, torch.full((2,), second), torch.tensor([1, 2]))


@torch.no_grad()
def test_changes_within_a_run_are_refused(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    first, second = (torch.tensor(t) for t in plan.sampler.timesteps[:2])
    labels = torch.tensor([1, 2, 1000, 1000])
    with ditfastattn.apply(pipe.transformer, plan):
        pipe.transformer(torch.randn(4, 4, 8, 8), first.expand(4), labels)
        with pytest.raises(StepError, match="latents"):
            pipe.transformer(torch.randn(2, 4, 8, 8), second.expand(2), labels[1:3])
        with pytest.raises(StepError, match="one timestep"):
            pipe.transformer(torch.randn(4, 4, 8, 8), torch.stack([first, second, first, second]), labels)
    with ditfastattn.apply(pipe.transformer, plan), pytest.raises(PlanMismatch, match="tokens"):
        pipe.transformer(torch.randn(4, 4, 4, 4), first.expand(4), labels)


@torch.no_grad()
def test_a_batch_in_the_other_order_is_refused(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    timestep = torch.full((4,), plan.sampler.timesteps[0])
    with ditfastattn.apply(pipe.transformer, plan), pytest.raises(PlanMismatch, match="in that order"):
        pipe.transformer(torch.randn(4, 4, 8, 8), timestep, torch.tensor([1000, 1000, 1, 2]))


def test_a_replaced_scheduler_is_refused(pipe: DiTPipeline) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)):
        pipe.scheduler = make_sampler("ddim", pipe.scheduler.config)
        with pytest.raises(StepError, match="scheduler was replaced"):
            sample(pipe, STEPS)


def test_a_replaced_transformer_does_not_run_uncompressed_unnoticed(pipe: DiTPipeline) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)):
        ours, pipe.transformer = pipe.transformer, small_pipeline(seed=1).transformer
        with pytest.raises(StepError, match="transformer was replaced"):
            sample(pipe, STEPS)
        pipe.transformer = ours
        sample(pipe, STEPS)


def test_a_setting_that_a_newer_diffusers_adds_is_no_difference(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    fewer = {key: value for key, value in plan.sampler.settings.items() if key != "use_lu_lambdas"}
    older = plan.model_copy(update={"sampler": plan.sampler.model_copy(update={"settings": fewer})})
    ditfastattn.apply(pipe, older).remove()
    pipe.scheduler.register_to_config(use_lu_lambdas=True)
    with pytest.raises(PlanMismatch, match="use_lu_lambdas"):
        ditfastattn.apply(pipe, older)


def test_every_difference_is_listed_at_once(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    other = small_pipeline(layers=5, sampler="ddim")
    with pytest.raises(PlanMismatch) as refused:
        ditfastattn.apply(other, plan)
    text = str(refused.value)
    assert "layers: the plan has 4, this model 5" in text and "sampler: the plan has DPMSolver" in text
    other_layout = plan.model_copy(update={"guidance": GuidanceSpec(scale=4.0, layout="uncond_first")})
    with pytest.raises(PlanMismatch, match="guidance layout: the plan has uncond_first, this model cond_first"):
        ditfastattn.apply(pipe, other_layout)


# ----------------------------------------------------------------------------------------------- refused installs


def test_what_cannot_be_compressed_says_why(pipe: DiTPipeline, tmp_path: Any) -> None:
    plan = random_plan(pipe, STEPS)
    with ditfastattn.apply(pipe, plan), pytest.raises(ApplyError, match="already follows a plan"):
        ditfastattn.apply(pipe, plan)
    with pytest.raises(KernelError, match="no kernel 'warp'"):
        ditfastattn.apply(pipe, plan, kernel="warp")
    with pytest.raises(ApplyError, match="Linear is not supported"):
        ditfastattn.apply(torch.nn.Linear(2, 2), plan)
    with pytest.raises(ApplyError, match="no transformer"):
        ditfastattn.apply(object(), plan)
    with pytest.raises(ApplyError, match="brings its own scheduler"):
        ditfastattn.apply(pipe, plan, scheduler=pipe.scheduler)
    compiled = small_pipeline()
    compiled.transformer.transformer_blocks[0].compile()
    with pytest.raises(ApplyError, match="compiled"):
        ditfastattn.apply(compiled, plan)
    pipe.transformer.transformer_blocks[2].attn1.processor = object()
    with pytest.raises(ApplyError, match="block 2: attention processor object"):
        ditfastattn.apply(pipe, plan)


def test_a_plan_file_is_as_good_as_a_plan(pipe: DiTPipeline, tmp_path: Any) -> None:
    plan = random_plan(pipe, STEPS)
    save(plan, tmp_path / "plan.json")
    with ditfastattn.apply(pipe, plan):
        expected = sample(pipe, STEPS)
    with ditfastattn.apply(pipe, tmp_path / "plan.json"):
        assert torch.equal(sample(pipe, STEPS), expected)


def test_offload_hooks_around_a_session(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    with ditfastattn.apply(pipe, plan):
        expected = sample(pipe, STEPS)
    add_hook_to_module(pipe.transformer, ModelHook())
    with ditfastattn.apply(pipe, plan):
        assert torch.equal(sample(pipe, STEPS), expected)
    remove_hook_from_module(pipe.transformer)
    session = ditfastattn.apply(pipe, plan)
    add_hook_to_module(pipe.transformer, ModelHook())
    assert torch.equal(sample(pipe, STEPS), expected)
    with pytest.raises(ApplyError, match="replaced by another tool"):
        session.remove()
    remove_hook_from_module(pipe.transformer)
    session.remove()


def test_a_forward_taken_away_is_noticed(pipe: DiTPipeline) -> None:
    ditfastattn.apply(pipe, random_plan(pipe, STEPS))
    del pipe.transformer.__dict__["forward"]
    with pytest.raises(StepError, match="outside of its transformer's forward"):
        sample(pipe, STEPS)


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
