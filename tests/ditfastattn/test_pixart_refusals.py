"""PixArt: what is refused, and pipelines from folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import full_plan, random_plan, small_pipeline
from small_pixart import WIDTH, WORDS, prompts, sample_pixart, small_pixart_pipeline

import ditfastattn
from ditfastattn import load_pipeline
from ditfastattn.errors import ApplyError, LoadError, StepError
from plans import Method, PlanMismatch

STEPS = 8


@pytest.fixture
def pixart() -> Any:
    return small_pixart_pipeline()


def test_a_plan_of_another_family_is_refused(pixart: Any) -> None:
    dit = small_pipeline()
    with pytest.raises(PlanMismatch, match="DiTTransformer2DModel"):
        ditfastattn.apply(pixart, random_plan(dit, STEPS))
    with pytest.raises(PlanMismatch, match="guidance layout: the plan has uncond_first, this model cond_first"):
        ditfastattn.apply(dit, random_plan(pixart, STEPS))


def test_guidance_is_verified_against_what_the_sampler_gets(pixart: Any) -> None:
    with ditfastattn.apply(pixart, random_plan(pixart, STEPS)) as session:
        with pytest.raises(PlanMismatch, match="guidance scale: the plan has 4, this run 5"):
            sample_pixart(pixart, guidance_scale=5.0)
        with pytest.raises(PlanMismatch, match="guidance layout"):
            sample_pixart(pixart, guidance_scale=1.0)
        assert set(session.summary().methods) == {Method.FULL}
    with (
        ditfastattn.apply(pixart, random_plan(pixart, STEPS, guidance_scale=1.0)),
        pytest.raises(PlanMismatch, match="this batch holds both"),
    ):
        sample_pixart(pixart)


@torch.no_grad()
def test_branches_in_the_other_order_are_refused(pixart: Any) -> None:
    plan = random_plan(pixart, STEPS)
    given = prompts()
    text = torch.cat([given["prompt_embeds"], given["negative_prompt_embeds"]])  # conditional first
    latents = torch.randn(2, 4, 8, 8)
    scheduler = pixart.scheduler
    with ditfastattn.apply(pixart, plan):
        scheduler.set_timesteps(STEPS)
        t = scheduler.timesteps[0]
        output = pixart.transformer(latents.repeat(2, 1, 1, 1), text, t.expand(4)).sample[:, :4]
        cond, uncond = output.chunk(2)
        with pytest.raises(PlanMismatch, match="guidance scale: the plan has 4, this run -3"):
            scheduler.step(uncond + 4.0 * (cond - uncond), t, latents)


def test_one_noise_twice_without_guidance_is_refused_before_anything_compressed(pixart: Any) -> None:
    """Two prompts from the same noise look like two branches; what the sampler is handed tells them apart."""
    noise = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1)
    with ditfastattn.apply(pixart, random_plan(pixart, STEPS)) as session:
        with pytest.raises(PlanMismatch, match="guidance"):
            sample_pixart(pixart, guidance_scale=1.0, latents=noise)
        assert set(session.summary().methods) == {Method.FULL}


@torch.no_grad()
def test_arguments_that_a_plan_does_not_know_are_refused(pixart: Any) -> None:
    plan = full_plan(pixart, STEPS)
    latents, t = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.full((4,), plan.sampler.timesteps[0])
    text = torch.randn(4, WORDS, WIDTH)
    with ditfastattn.apply(pixart.transformer, plan):
        with pytest.raises(StepError, match="self-attention masks"):
            pixart.transformer(latents, text, t, attention_mask=torch.ones(4, 16))
        with pytest.raises(StepError, match="cross_attention_kwargs"):
            pixart.transformer(latents, text, t, cross_attention_kwargs={"scale": 0.5})
    pixart.transformer.fuse_qkv_projections()
    with pytest.raises(ApplyError, match=r"block 0: .*unfuse"):
        ditfastattn.apply(pixart, plan)


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
@pytest.mark.parametrize("graphs", [False, True])
@torch.no_grad()
def test_another_mask_in_mid_run_is_refused(pixart: Any, graphs: bool) -> None:
    plan = full_plan(pixart, STEPS)
    latents, text = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.randn(4, WORDS, WIDTH)
    mask = torch.ones(4, WORDS)
    with ditfastattn.apply(pixart.transformer, plan, graphs=graphs):
        first, second, third = ((latents, text, torch.full((4,), t)) for t in plan.sampler.timesteps[:3])
        pixart.transformer(*first, encoder_attention_mask=mask)
        pixart.transformer(*second, encoder_attention_mask=mask.clone())
        mask[0, 2:] = 0
        with pytest.raises(StepError, match="another condition"):
            pixart.transformer(*third, encoder_attention_mask=mask)


# ------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("sigma", [True, False])
def test_a_folder_without_text_encoder_loads(sigma: bool, tmp_path: Path) -> None:
    pipe = small_pixart_pipeline(sigma)
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert type(loaded) is type(pipe)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(sample_pixart(loaded, 4), sample_pixart(pipe, 4))


def test_a_pipeline_of_an_unknown_class_is_named(tmp_path: Path) -> None:
    for given in ('"StableDiffusionPipeline"', '["mine", "Pipeline"]', "7"):
        (tmp_path / "model_index.json").write_text(f'{{"_class_name": {given}}}')
        with pytest.raises(LoadError, match="this version loads DiTPipeline, PixArtAlphaPipeline"):
            load_pipeline(tmp_path)
