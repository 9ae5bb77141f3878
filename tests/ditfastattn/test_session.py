"""A plan on a pipeline and on a bare transformer: right, or refused before anything wrong is computed."""

import copy
import pickle
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
from plans import GuidanceSpec, Method, Plan, PlanError, PlanMismatch, Window, save

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
        with pytest.raises(PlanMismatch, match=f"guidance scale: the plan has 4, this run {scale:.3g}"):
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
        pipe.transformer(torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), first.expand(4), labels)
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


def test_hooks_around_a_session(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    uncompressed = sample(pipe, STEPS)
    with ditfastattn.apply(pipe, plan):
        expected = sample(pipe, STEPS)
    add_hook_to_module(pipe.transformer, ModelHook())
    with ditfastattn.apply(pipe, plan):
        assert torch.equal(sample(pipe, STEPS), expected)
    remove_hook_from_module(pipe.transformer)
    before = everything(pipe)
    session = ditfastattn.apply(pipe, plan)
    add_hook_to_module(pipe.transformer, ModelHook())
    assert torch.equal(sample(pipe, STEPS), expected)
    with pytest.warns(UserWarning, match="another tool has wrapped DiTTransformer2DModel.forward"):
        session.remove()
    assert torch.equal(sample(pipe, STEPS), uncompressed)  # the plan is off all the same
    remove_hook_from_module(pipe.transformer)
    session.remove()
    assert same(before, everything(pipe))


def test_offload_before_apply_is_refused(pipe: DiTPipeline) -> None:
    pipe._all_hooks = [object()]  # what enable_model_cpu_offload() leaves
    with pytest.raises(ApplyError, match="CPU offload is on"):
        ditfastattn.apply(pipe, random_plan(pipe, STEPS))


def test_a_forward_taken_away_is_noticed(pipe: DiTPipeline) -> None:
    ditfastattn.apply(pipe, random_plan(pipe, STEPS))
    del pipe.transformer.__dict__["forward"]
    with pytest.raises(StepError, match="outside of its transformer's forward"):
        sample(pipe, STEPS)


# ------------------------------------------------------------------------------------- what an adversary would try


def test_another_sampler_on_the_same_transformer_is_refused(pipe: DiTPipeline) -> None:
    other = DiTPipeline(pipe.transformer, pipe.vae, make_sampler("dpm", pipe.scheduler.config))
    other.set_progress_bar_config(disable=True)
    with (
        ditfastattn.apply(pipe, random_plan(pipe, STEPS)) as session,
        pytest.raises(StepError, match="step was not called"),
    ):
        sample(other, STEPS, guidance_scale=9.0)
    assert set(session.summary().methods) == {Method.FULL}


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 4.05])
def test_any_other_combination_of_the_branches_is_refused(pipe: DiTPipeline, scale: float) -> None:
    with (
        ditfastattn.apply(pipe.transformer, random_plan(pipe, STEPS), scheduler=pipe.scheduler),
        pytest.raises(PlanMismatch, match="guidance"),
    ):
        own_loop(pipe, lambda cond, uncond, step: uncond + scale * (cond - uncond))


def test_rescaled_and_changing_guidance_are_refused(pipe: DiTPipeline) -> None:
    def rescaled(cond: torch.Tensor, uncond: torch.Tensor, step: int) -> torch.Tensor:
        guided = uncond + 4.0 * (cond - uncond)
        return guided * (0.8 + 0.2 * cond.std() / guided.std())

    def changing(cond: torch.Tensor, uncond: torch.Tensor, step: int) -> torch.Tensor:
        return uncond + (4.0 if step < 3 else 1.5) * (cond - uncond)

    for guide in (rescaled, changing):
        with (
            ditfastattn.apply(pipe.transformer, random_plan(pipe, STEPS), scheduler=pipe.scheduler),
            pytest.raises(PlanMismatch, match="guidance"),
        ):
            own_loop(pipe, guide)
    with ditfastattn.apply(pipe.transformer, random_plan(pipe, STEPS), scheduler=pipe.scheduler):
        own_loop(pipe, lambda cond, uncond, step: uncond + 4.0 * (cond - uncond))


@torch.no_grad()
def own_loop(pipe: DiTPipeline, guide: Any) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2, 1000, 1000])
    pipe.scheduler.set_timesteps(STEPS)
    for step, t in enumerate(pipe.scheduler.timesteps):
        output = pipe.transformer(torch.cat([latents, latents]), t.expand(4), labels).sample[:, :4]
        latents = pipe.scheduler.step(guide(*output.chunk(2), step), t, latents).prev_sample


def test_sampler_settings_changed_after_apply_are_seen(pipe: DiTPipeline) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)):
        pipe.scheduler.register_to_config(solver_order=3)
        with pytest.raises(PlanMismatch, match="solver_order"):
            sample(pipe, STEPS)


def test_patched_linears_are_called_and_hidden_hooks_refused(pipe: DiTPipeline) -> None:
    linear = pipe.transformer.transformer_blocks[1].norm1.linear
    plan = full_plan(pipe, STEPS).with_methods([[Method.FULL] * 4, *[[Method.AST] * 4] * (STEPS - 1)])
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = linear.register_forward_hook(count)
    with ditfastattn.apply(pipe, plan):
        sample(pipe, STEPS)
    assert calls == STEPS  # at AST steps too
    handle.remove()
    pipe.transformer.transformer_blocks[1].norm1.register_forward_hook(lambda *_: None)
    with pytest.raises(ApplyError, match="norm1 carries hooks"):
        ditfastattn.apply(pipe, plan)


def test_parts_changed_after_apply_are_noticed_at_the_next_run(pipe: DiTPipeline) -> None:
    blocks = pipe.transformer.transformer_blocks
    spare = small_pipeline(seed=1).transformer.transformer_blocks
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)):
        ours, blocks[2].attn1 = blocks[2].attn1, spare[2].attn1
        with pytest.raises(StepError, match="block 2: its attn1 was replaced"):
            sample(pipe, STEPS)
        blocks[2].attn1 = ours
        ours, blocks[1] = blocks[1], spare[1]
        with pytest.raises(StepError, match="blocks are not those"):
            sample(pipe, STEPS)
        blocks[1] = ours
        pipe.transformer.train()
        with pytest.raises(StepError, match="training"):
            sample(pipe, STEPS)
        pipe.transformer.eval()
        sample(pipe, STEPS)


def test_a_plan_built_past_its_checks_is_refused(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    hidden = plan.model_copy(update={"window": Window.model_construct(left=-20, right=20)})
    site = plan.sites["attn"]
    reuse_at_0 = site.model_copy(update={"methods": ((Method.AST,) * 4, *site.methods[1:])})
    for broken in (
        hidden,
        plan.model_copy(update={"sites": {"attn": reuse_at_0}}),
        plan.model_copy(update={"window": 3}),
    ):
        with pytest.raises((PlanError, ApplyError)):
            ditfastattn.apply(pipe, broken)
    with pytest.raises(ApplyError, match="not a NoneType"):
        ditfastattn.apply(pipe, None)  # type: ignore[arg-type]


@torch.no_grad()
def test_mixed_batches_are_refused(pipe: DiTPipeline) -> None:
    unguided, guided = random_plan(pipe, STEPS, guidance_scale=1.0), random_plan(pipe, STEPS)
    timestep = torch.full((4,), guided.sampler.timesteps[0])
    same_latents = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1)
    with ditfastattn.apply(pipe.transformer, unguided), pytest.raises(PlanMismatch, match="holds both"):
        pipe.transformer(same_latents, timestep, torch.tensor([1000, 1000, 1, 2]))
    with ditfastattn.apply(pipe.transformer, guided), pytest.raises(PlanMismatch, match="different latents"):
        pipe.transformer(torch.randn(4, 4, 8, 8), timestep, torch.tensor([1, 2, 1000, 1000]))


@torch.no_grad()
def test_a_label_buffer_refilled_in_place_is_another_condition(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    latents, labels = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor([1, 2, 1000, 1000])
    with ditfastattn.apply(pipe.transformer, plan):
        pipe.transformer(latents, torch.full((4,), plan.sampler.timesteps[0]), labels)
        labels[0] = 5
        with pytest.raises(StepError, match="another condition"):
            pipe.transformer(latents, torch.full((4,), plan.sampler.timesteps[1]), labels)


def test_a_model_that_follows_a_plan_is_not_copied(pipe: DiTPipeline) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)):
        for copied in (lambda: copy.deepcopy(pipe.transformer), lambda: pickle.dumps(pipe.transformer)):
            with pytest.raises(ApplyError, match="remove the plan first"):
                copied()


@torch.no_grad()
def test_after_a_failed_call_a_bare_transformer_needs_a_new_run(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, STEPS)
    latents, labels = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor([1, 2, 1000, 1000])
    with ditfastattn.apply(pipe.transformer, plan):
        pipe.transformer(latents, torch.full((4,), plan.sampler.timesteps[0]), labels)
        with pytest.raises(StepError):
            pipe.transformer(latents, torch.full((4,), 3.0), labels)
        with pytest.raises(StepError, match="cannot begin a run"):
            pipe.transformer(latents, torch.full((4,), plan.sampler.timesteps[1]), labels)


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
