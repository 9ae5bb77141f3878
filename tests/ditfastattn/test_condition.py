"""Conditions: labels and prompts as a transformer is told them, and our sampling beside the pipelines' own."""

from typing import Any

import pytest
import torch
from small_models import small_pipeline
from small_pixart import WIDTH, small_pixart_pipeline, small_text_to_image

from ditfastattn.condition import Condition, FromPrompts
from ditfastattn.errors import ApplyError, LoadError
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.sampling import Denoiser, Trajectory, label_condition, sample_latents

TEXTS = ("a red fox in the snow", "two boats")


def condition_of(pipe: Any, texts: tuple[str, ...] = TEXTS, negative: str = "grey and blurred") -> Condition:
    adapter = adapt(pipe.transformer)
    assert isinstance(adapter, FromPrompts)
    return adapter.condition(pipe, texts, negative)


@pytest.mark.parametrize("order", [Layout.COND_FIRST, Layout.UNCOND_FIRST])
def test_a_condition_is_cut_by_images_and_joined_by_branches(order: Layout) -> None:
    ours, theirs = torch.arange(6).reshape(3, 2), torch.arange(6, 12).reshape(3, 2)
    sizes = {"height": torch.tensor([[8.0], [9.0], [10.0]]), "width": None}
    whole = Condition({"text": ours, "sizes": sizes, "frames": 16}, {"text": theirs, "sizes": sizes, "frames": 16},
                      (4, 8, 8))  # fmt: skip
    part = whole.of([2, 0])
    assert (len(whole), len(part)) == (3, 2)
    given = part.arguments(order)
    cond, uncond = [[4, 5], [0, 1]], [[10, 11], [6, 7]]
    assert given["text"].tolist() == (cond + uncond if order is Layout.COND_FIRST else uncond + cond)
    assert given["sizes"]["height"].flatten().tolist() == [10, 8, 10, 8] and given["sizes"]["width"] is None
    assert given["frames"] == 16
    assert part.arguments(Layout.NONE)["text"].tolist() == cond


def test_labels_are_told_as_before() -> None:
    pipe = small_pipeline()
    denoiser = Denoiser(pipe.transformer, label_condition(pipe.transformer, (5, 7)), 4.0)
    assert denoiser.arguments["class_labels"].tolist() == [5, 7, 1000, 1000] and denoiser.rows == 4
    with pytest.raises(ApplyError, match="not conditioned on class labels"):
        label_condition(small_pixart_pipeline().transformer, (1,))


@pytest.mark.parametrize("sigma", [True, False])
@pytest.mark.parametrize("scale", [4.5, 1.0])
def test_our_sampling_of_prompts_is_the_pipelines_to_the_last_bit(sigma: bool, scale: float) -> None:
    pipe = small_text_to_image(sigma)
    denoiser = Denoiser(pipe.transformer, condition_of(pipe), scale)
    noise = Trajectory(denoiser, pipe.scheduler, 6, seed=3, indices=(0, 1)).latents
    ours = sample_latents(denoiser, pipe.scheduler, 6, 3, (0, 1))
    assert torch.equal(ours, draw(pipe, noise, scale))
    assert not torch.equal(ours, draw(pipe, noise, scale, negative="another")) or scale == 1


@pytest.mark.parametrize("steps", [20, 50])
def test_it_stays_the_pipelines_over_many_steps(steps: int) -> None:
    pipe = small_text_to_image()
    denoiser = Denoiser(pipe.transformer, condition_of(pipe), 4.5)
    noise = Trajectory(denoiser, pipe.scheduler, steps, seed=0, indices=(0, 1)).latents
    ours = sample_latents(denoiser, pipe.scheduler, steps, 0, (0, 1))
    assert torch.equal(ours, draw(pipe, noise, 4.5, steps))


@pytest.mark.parametrize("latents", [128, 256, 8])
def test_sizes_of_the_image_are_told_as_the_pipeline_tells_them(latents: int) -> None:
    """PixArt-alpha at 1024 px (latents of 128) embeds them, others do not; here with large patches, for few tokens."""
    config = {"sample_size": latents, "patch_size": latents // 4, "caption_channels": WIDTH}
    pipe = small_text_to_image(sigma=False, **config)
    assert pipe.transformer.use_additional_conditions == (latents == 128)
    condition = condition_of(pipe)
    sizes = condition.arguments(Layout.UNCOND_FIRST)["added_cond_kwargs"]
    if latents == 128:
        assert sizes["resolution"].tolist() == [[256.0, 256.0]] * 4 and sizes["aspect_ratio"].tolist() == [[1.0]] * 4
    else:
        assert sizes == {"resolution": None, "aspect_ratio": None}
    denoiser = Denoiser(pipe.transformer, condition, 4.5)
    noise = Trajectory(denoiser, pipe.scheduler, 3, seed=0, indices=(0, 1)).latents
    assert torch.equal(sample_latents(denoiser, pipe.scheduler, 3, 0, (0, 1)), draw(pipe, noise, 4.5, steps=3))


def test_an_image_depends_on_its_own_prompt_alone() -> None:
    pipe = small_text_to_image()
    both, one = condition_of(pipe), condition_of(pipe, TEXTS[1:])
    first = Denoiser(pipe.transformer, both.of([1]), 4.5)
    ours, alone = (sample_latents(d, pipe.scheduler, 4, 0, (1,)) for d in (first, Denoiser(pipe.transformer, one, 4.5)))
    torch.testing.assert_close(ours, alone, rtol=1e-5, atol=1e-5)


def test_a_pipeline_that_cannot_encode_says_what_it_lacks() -> None:
    with pytest.raises(LoadError, match="has no text_encoder and no tokenizer, so it cannot encode prompts"):
        condition_of(small_pixart_pipeline())


def draw(pipe: Any, noise: torch.Tensor, scale: float, steps: int = 6, negative: str = "grey and blurred") -> Any:
    return pipe(
        prompt=list(TEXTS), negative_prompt=negative, latents=noise, guidance_scale=scale, num_inference_steps=steps,
        output_type="latent", use_resolution_binning=False, clean_caption=False,
    ).images  # fmt: skip
