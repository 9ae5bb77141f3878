"""Open-Sora's pipeline: guidance, sampler, prompts, frames, and what each video depends on."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from small_opensora import WORDS, prompts, sample_opensora, sizes, small_opensora

from ditfastattn import load_pipeline
from ditfastattn.condition import VideoSize
from ditfastattn.errors import LoadError
from ditfastattn.models import adapt
from ditfastattn.opensora import OpenSoraPipeline, write_video
from ditfastattn.samplers import SAMPLERS, make_sampler
from ditfastattn.sampling import image_generators


def test_from_prompt_to_gif(tmp_path: Path) -> None:
    pipe = small_opensora()
    video = pipe("A boat on the sea", num_frames=4, height=13, width=18, num_inference_steps=4).frames
    assert video.shape == (1, 4, 12, 18, 3) and video.dtype == np.float32  # 13 pixels: 6 rows of latents, 3 of tokens
    assert 0 <= video.min() < video.max() <= 1
    write_video(tmp_path / "boat.gif", video[0])
    with PIL.Image.open(tmp_path / "boat.gif") as gif:
        assert (gif.n_frames, gif.size) == (4, (18, 12))


def test_two_steps_of_iddpm_are_the_formula() -> None:
    """Improved DDPM (arXiv 2102.09672): Eq. 15 for the variance, and the posterior's mean with unclipped x0.

    Guidance on three channels, the fourth and the variance from the conditional branch, as in Open-Sora's
    forward_with_cfg, with cfg_channel = 3. Two steps of 200 training timesteps 999 and 0, the second without noise.
    """
    pipe, scale = small_opensora(), 7.0
    given = prompts(2)
    ours = sample_opensora(pipe, steps=2, generator=image_generators(3, (0, 1)))

    noises = [torch.randn(2, 4, 4, 6, 8, generator=generator).double() for generator in image_generators(3, (0, 1))]
    x = torch.stack([noise[0] for noise in noises])
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    words = torch.cat([given["prompt_embeds"], pipe.transformer.y_embedder.y_embedding.expand(2, 1, -1, -1)])
    for t, before in ((999, abar[0]), (0, torch.ones(()).double())):
        with torch.no_grad():
            output = pipe.transformer(
                x.float().repeat(2, 1, 1, 1, 1),
                torch.full((4,), t),
                words,
                given["prompt_mask"],
                **sizes(4, frames=4, height=12, width=16),
            ).double()
        cond, uncond = output.chunk(2)
        eps = cond[:, :4].clone()
        eps[:, :3] = uncond[:, :3] + scale * (cond[:, :3] - uncond[:, :3])
        beta = 1 - abar[t] / before
        x0 = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
        x = before.sqrt() * beta / (1 - abar[t]) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - abar[t]) * x
        if t:
            fraction = (cond[:, 4:] + 1) / 2
            log_variance = fraction * beta.log() + (1 - fraction) * ((1 - before) / (1 - abar[t]) * beta).log()
            x = x + (0.5 * log_variance).exp() * torch.stack([noise[1] for noise in noises])
    assert (ours.double() - x).norm() < 1e-4 * x.norm()


def test_200_timesteps_are_those_of_open_soras_respacing() -> None:
    pipe = small_opensora()
    seen: list[int] = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: seen.append(int(args[1][0])))
    sample_opensora(pipe, steps=200, videos=1, num_frames=1, height=4, width=4)
    # hpcaitech/Open-Sora, opensora/schedulers/iddpm/respace.py: 200 equal strides over 0 .. 999, rounded.
    assert seen == [round(i * 999 / 199) for i in range(200)][::-1]


@pytest.mark.parametrize("sampler", ["iddpm", "ddpm"])
def test_a_video_depends_on_its_seed_and_index_alone(sampler: str) -> None:
    pipe = small_opensora(sampler)
    given = prompts(3)

    def videos(rows: slice, indices: tuple[int, ...]) -> torch.Tensor:
        own = {name: tensor[rows] for name, tensor in given.items()}
        return sample_opensora(pipe, generator=image_generators(7, indices), **own)

    together = videos(slice(0, 3), (10, 11, 12))
    assert torch.equal(together, videos(slice(0, 3), (10, 11, 12)))
    alone = torch.cat([videos(slice(i, i + 1), (10 + i,)) for i in range(3)])
    assert (together - alone).norm() < 1e-4 * together.norm()
    assert not torch.allclose(videos(slice(0, 1), (10,)), videos(slice(0, 1), (11,)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs(sampler: str) -> None:
    assert sample_opensora(small_opensora(sampler), steps=3, videos=1).isfinite().all()


@pytest.mark.parametrize("cls", [DDIMScheduler, EulerDiscreteScheduler, DDPMScheduler])
def test_a_sampler_made_from_anothers_config_runs_without_its_variance(cls: Any) -> None:
    pipe = small_opensora("iddpm")
    pipe.scheduler = cls.from_config(pipe.scheduler.config)
    assert sample_opensora(pipe, steps=3, videos=1).isfinite().all()


def test_a_sampler_that_would_cut_channels_is_refused() -> None:
    pipe = small_opensora("iddpm")
    iddpm, pipe.scheduler = pipe.scheduler, DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(LoadError, match=r"variance_type='learned_range' would cut.*make_sampler\(name, config\)"):
        sample_opensora(pipe)
    pipe.scheduler = make_sampler("dpm", iddpm.config)
    assert sample_opensora(pipe, steps=3, videos=1).isfinite().all()


def test_an_image_is_told_as_one() -> None:
    """120 frames a second, as hpcaitech/Open-Sora has it in training and sampling (IMG_FPS)."""
    pipe, told = small_opensora(), []
    pipe.transformer.register_forward_pre_hook(lambda _, __, kwargs: told.append(kwargs["fps"][0]), with_kwargs=True)
    for given in ({"num_frames": 1}, {"num_frames": 2}, {"num_frames": 1, "fps": 24}):
        sample_opensora(pipe, steps=1, videos=1, **given)
    assert told == [120, 24, 24]
    for frames in (1, 2):
        size = VideoSize(frames, 12, 16)
        condition = adapt(pipe.transformer).encoded(pipe, ["a boat"], "", size)  # type: ignore[attr-defined]
        assert condition.conditional["fps"].tolist() == [120 if frames == 1 else 24]


def test_without_guidance_the_batch_is_the_conditional_branch() -> None:
    pipe, batches = small_opensora(), []
    pipe.transformer.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    sample_opensora(pipe, guidance_scale=1)
    sample_opensora(pipe, guidance_scale=1.5)
    assert batches == [2] * 4 + [4] * 4


def test_the_first_half_of_a_guided_batch_is_conditional() -> None:
    pipe, calls = small_opensora(), []
    pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    given = prompts(2)
    sample_opensora(pipe)
    args, kwargs = calls[0]
    assert torch.equal(args[0][:2], args[0][2:])
    assert torch.equal(args[2][:2], given["prompt_embeds"])
    assert torch.equal(args[2][3, 0], pipe.transformer.y_embedder.y_embedding)
    assert torch.equal(kwargs["mask"], given["prompt_mask"].repeat(2, 1))


def test_prompts_encoded_once_give_the_same_without_the_encoder() -> None:
    pipe = small_opensora()
    asked: dict[str, Any] = {"num_frames": 2, "height": 8, "width": 8, "num_inference_steps": 2}
    first = pipe(["a boat", "a cat"], generator=image_generators(0, (0, 1)), **asked).frames
    embeds, mask = pipe.encode_prompt(["a boat", " A cat\n"])
    assert embeds.shape == (2, 1, WORDS, 20) and mask.tolist() == [[1, 1, 1, 0, 0]] * 2
    pipe.release_text_encoder()
    assert "text_encoder" not in {name for name, part in pipe.components.items() if part is not None}
    again = pipe(prompt_embeds=embeds, prompt_mask=mask, generator=image_generators(0, (0, 1)), **asked).frames
    np.testing.assert_array_equal(first, again)
    with pytest.raises(ValueError, match="no text encoder"):
        pipe("a boat")


def test_frames_in_every_form() -> None:
    pipe = small_opensora()
    latents = sample_opensora(pipe)
    arrays = sample_opensora(pipe, output_type="np")
    images = sample_opensora(pipe, output_type="pil", return_dict=True)
    assert latents.shape == (2, 4, 4, 6, 8) and arrays.shape == (2, 4, 12, 16, 3)
    for video, frames in zip(images, arrays, strict=True):
        for image, frame in zip(video, frames, strict=True):
            np.testing.assert_allclose(np.asarray(image) / 255, frame, atol=1e-6)
    one = pipe.vae.decode(latents[1, :, 2][None] / pipe.vae.config.scaling_factor).sample[0]  # frame 2 of video 1
    expected = (one.add(1).mul(127.5).round().clamp(0, 255) / 255).permute(1, 2, 0)
    np.testing.assert_allclose(arrays[1, 2], expected.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("text", [True, False])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, text: bool) -> None:
    pipe = small_opensora(text=text)
    pipe.save_pretrained(tmp_path)
    for again in (OpenSoraPipeline.from_pretrained(tmp_path), load_pipeline(tmp_path)):
        again.set_progress_bar_config(disable=True)
        assert (again.text_encoder is not None) == text
        assert type(again.scheduler) is type(pipe.scheduler)
        assert torch.equal(sample_opensora(again), sample_opensora(pipe))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a boat"}, "either prompt= or prompt_embeds="),
        ({"prompt_embeds": None}, "either prompt= or prompt_embeds="),
        ({"output_type": "mp4"}, "output_type is one of np, pil, latent, not 'mp4'"),
        ({"num_frames": 0}, "a frame at least"),
        ({"width": 1}, "2 x 2 pixels at least"),
        ({"prompt_embeds": torch.zeros(2, WORDS, 20)}, "prompt_embeds is"),
        ({"prompt_mask": torch.ones(1, WORDS)}, "prompt_mask is"),
        ({"prompt_mask": None}, "prompt_embeds= and prompt_mask= go together"),
        ({"prompt": "a boat", "prompt_embeds": None}, "prompt_embeds= and prompt_mask= go together"),
        ({"prompt": [], "prompt_embeds": None, "prompt_mask": None}, "prompt= holds no prompt"),
        ({"latents": torch.zeros(2, 4, 9, 3, 5)}, r"latents is \(2, 4, 9, 3, 5\), and should be \(2, 4, 4, 6, 8\)"),
        ({"latents": torch.zeros(1, 4, 4, 6, 8)}, "latents is"),
        ({"height": 12.5}, "are integers, not 4, 12.5 and 16"),
    ],
)
def test_arguments_that_do_not_fit_get_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_opensora(small_opensora(text=False), **change)
