"""Latte: what is refused, and pipelines from folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_latte import WIDTH, WORDS, sample_latte, small_latte, video_plan
from small_models import full_plan, random_plan
from small_pixart import small_pixart_pipeline

import ditfastattn
from ditfastattn import load_pipeline
from ditfastattn.errors import ApplyError, StepError
from plans import Plan, PlanMismatch, TemporalShape

STEPS = 6


def test_plans_of_other_models_are_refused(latte: Any) -> None:
    pixart = small_pixart_pipeline()
    with pytest.raises(PlanMismatch, match="PixArtTransformer2DModel") as error:
        ditfastattn.apply(latte, random_plan(pixart, STEPS))
    assert "temporal attention: the plan has none, this model 2 layers of 4 frames" in error.value.differences
    with pytest.raises(PlanMismatch, match="temporal attention: the plan has 2 layers of 4 frames, this model none"):
        ditfastattn.apply(pixart, video_plan(latte, STEPS))
    plan = full_plan(latte, STEPS)
    longer = plan.model.model_copy(update={"temporal": TemporalShape(layers=2, frames=16)})
    other = Plan.full(model=longer, sampler=plan.sampler, guidance=plan.guidance)
    with pytest.raises(PlanMismatch, match="frames: the plan has 16, this model 4"):
        ditfastattn.apply(latte, other)


def test_a_run_of_other_frames_or_without_temporal_attention_is_refused(latte: Any) -> None:
    with ditfastattn.apply(latte, video_plan(latte, STEPS)) as session:
        with pytest.raises(PlanMismatch, match="frames: the plan has 4, this run 1"):
            sample_latte(latte, STEPS, video_length=1)
        with pytest.raises(StepError, match="enable_temporal_attentions=True"):
            sample_latte(latte, STEPS, enable_temporal_attentions=False)
        with pytest.raises(StepError, match=r"\(B, C, frames, h, w\), got \(4, 4, 8, 8\)"):
            latte.transformer(torch.randn(4, 4, 8, 8), torch.full((4,), 999), torch.randn(4, WORDS, WIDTH))
        assert session.summary().methods == {}


def test_guidance_is_verified_against_what_the_sampler_gets(latte: Any) -> None:
    with ditfastattn.apply(latte, video_plan(latte, STEPS)):
        with pytest.raises(PlanMismatch, match="guidance scale: the plan has 4, this run 5"):
            sample_latte(latte, STEPS, guidance_scale=5.0)
        with pytest.raises(PlanMismatch, match="guidance layout"):
            sample_latte(latte, STEPS, guidance_scale=1.0)


def test_what_latte_is_not_set_up_for_is_named(latte: Any) -> None:
    plan = full_plan(latte, STEPS)
    for given in ({"compile": True}, {"graphs": True}):
        with pytest.raises(ApplyError, match="LatteTransformer3DModel cannot be run with compile=True or graphs=True"):
            ditfastattn.apply(latte, plan, **given)
    latte.transformer.temporal_transformer_blocks[1].attn1.fuse_projections()
    with pytest.raises(ApplyError, match="temporal block 1: the QKV projections are fused"):
        ditfastattn.apply(latte, plan)
    other = small_latte(norm_type="layer_norm")
    with pytest.raises(ApplyError, match="block 0: its norm_type is 'layer_norm'"):
        ditfastattn.apply(other, plan)


def test_a_folder_without_text_encoder_loads(latte: Any, tmp_path: Path) -> None:
    latte.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(latte) and torch.equal(sample_latte(loaded, 2), sample_latte(latte, 2))
