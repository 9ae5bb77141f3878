"""Runs that a session refuses: other steps, guidance, inputs and samplers than its plan was made for."""

from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from small_models import full_plan, random_plan, sample

import ditfastattn
from ditfastattn.errors import StepError
from ditfastattn.samplers import make_sampler
from plans import Method, PlanMismatch

STEPS = 8


def test_another_number_of_steps_is_refused_before_the_first_call(pipe: DiTPipeline) -> None:
    with ditfastattn.apply(pipe, random_plan(pipe, STEPS)) as session:
        with pytest.raises(PlanMismatch, match="steps: the plan has 8, this sampler 9") as caught:
            sample(pipe, STEPS + 1)
        assert "sample with num_inference_steps=8" in str(caught.value)
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

    def three_channels(cond: torch.Tensor, uncond: torch.Tensor, step: int) -> torch.Tensor:
        return torch.cat([(uncond + 4.0 * (cond - uncond))[:, :3], cond[:, 3:]], dim=1)  # as the official DiT samples

    for guide in (lambda cond, uncond, step: uncond + 4.0 * (cond - uncond), three_channels):
        with ditfastattn.apply(pipe.transformer, random_plan(pipe, STEPS), scheduler=pipe.scheduler):
            own_loop(pipe, guide)


@torch.no_grad()
def own_loop(pipe: DiTPipeline, guide: Any) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2, 1000, 1000])
    pipe.scheduler.set_timesteps(STEPS)
    for step, t in enumerate(pipe.scheduler.timesteps):
        output = pipe.transformer(torch.cat([latents, latents]), t.expand(4), labels).sample[:, :4]
        latents = pipe.scheduler.step(guide(*output.chunk(2), step), t, latents).prev_sample


@torch.no_grad()
@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)])
def test_latents_of_nan_are_named(pipe: DiTPipeline, rows: slice) -> None:
    plan = random_plan(pipe, STEPS)
    latents = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1)
    latents[rows] = torch.nan
    with ditfastattn.apply(pipe.transformer, plan), pytest.raises(StepError, match="hold NaN"):
        pipe.transformer(latents, torch.full((4,), plan.sampler.timesteps[0]), torch.tensor([1, 2, 1000, 1000]))


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
