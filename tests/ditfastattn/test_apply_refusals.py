"""What a plan cannot be applied to, and what changes behind a session's back."""

import copy
import pickle
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import DiTPipeline
from small_models import everything, full_plan, random_plan, same, sample, small_pipeline

import ditfastattn
from ditfastattn.errors import ApplyError, KernelError, StepError
from ditfastattn.samplers import make_sampler
from plans import GuidanceSpec, Method, PlanError, PlanMismatch, Window, save

STEPS = 8


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


def test_what_cannot_be_compressed_says_why(pipe: DiTPipeline, tmp_path: Any) -> None:
    plan = random_plan(pipe, STEPS)
    with ditfastattn.apply(pipe, plan), pytest.raises(ApplyError, match="already follows a plan"):
        ditfastattn.apply(pipe, plan)
    with pytest.raises(KernelError, match="no kernel 'warp'"):
        ditfastattn.apply(pipe, plan, kernel="warp")
    with pytest.raises(ApplyError, match="Linear is not supported"):
        ditfastattn.apply(torch.nn.Linear(2, 2), plan)
    for nothing in (object(), None):
        with pytest.raises(ApplyError, match=f"{type(nothing).__name__} has no transformer"):
            ditfastattn.apply(nothing, plan)
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


def test_a_model_that_follows_a_plan_is_not_copied(pipe: DiTPipeline) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)):
        for copied in (lambda: copy.deepcopy(pipe.transformer), lambda: pickle.dumps(pipe.transformer)):
            with pytest.raises(ApplyError, match="remove the plan first"):
                copied()
