"""Loading: folders, checkpoints, samplers, and what cannot be loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from small_models import TRAINING, label_denoiser, sample, small_pipeline
from test_original_dit import native_state

from ditfastattn import load_pipeline
from ditfastattn.decode import decode
from ditfastattn.errors import LoadError
from ditfastattn.samplers import SAMPLERS, inference_steps, make_sampler, sampler_spec
from ditfastattn.sampling import Trajectory, image_generators, sample_latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    small_pipeline().save_pretrained(path)
    return path


def test_a_folder_gives_the_pipeline_that_was_saved(folder: Path) -> None:
    pipe = load_pipeline(folder)
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    assert pipe.scheduler.config.algorithm_type == "dpmsolver++" and pipe.scheduler.config.solver_order == 2
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(sample(pipe, 4), sample(small_pipeline(), 4))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_and_keeps_the_training_schedule(folder: Path, name: str) -> None:
    pipe = load_pipeline(folder, sampler=name)
    assert pipe.scheduler.config.beta_end == TRAINING["beta_end"]
    latents = sample_latents(label_denoiser(pipe, (1,), 4.0), pipe.scheduler, 4, 0, range(1))
    assert latents.shape == (1, 4, 8, 8) and latents.isfinite().all()
    spec = sampler_spec(pipe.scheduler, 4)
    assert inference_steps(pipe.scheduler, len(spec.timesteps)) == 4


def test_an_original_checkpoint_with_its_vae(folder: Path, tmp_path: Path) -> None:
    torch.save(native_state(width=384), tmp_path / "DiT.pt")
    pipe = load_pipeline(tmp_path / "DiT.pt", vae=folder / "vae")
    assert pipe.transformer.config.num_attention_heads == 6 and pipe.transformer.config.sample_size == 8
    latents = sample_latents(label_denoiser(pipe, (1,), 4.0), pipe.scheduler, 2, 0, range(1))
    assert decode(pipe.vae, latents).shape == (1, 16, 16, 3)
    with pytest.raises(LoadError, match="vae="):
        load_pipeline(tmp_path / "DiT.pt", vae=tmp_path / "nowhere")


def test_what_cannot_be_loaded_gets_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"'demo-lng' is neither a folder here nor a hub id.* demo, demo-long"):
        load_pipeline("demo-lng")
    with pytest.raises(LoadError, match=r"as a pipeline hub id \(is there a network"):
        load_pipeline("nobody/demo-lng")
    with pytest.raises(LoadError, match="no model_index"):
        load_pipeline(tmp_path)
    with pytest.raises(LoadError, match="no sampler 'euler'"):
        load_pipeline(folder, sampler="euler")
    broken = tmp_path / "broken"
    small_pipeline().save_pretrained(broken)
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LoadError, match="cannot load") as error:
        load_pipeline(broken)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------- sampling


def test_our_loop_is_the_pipelines_loop(folder: Path) -> None:
    pipe = load_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    run = Trajectory(label_denoiser(pipe, (1, 2), 4.0), pipe.scheduler, 6, seed=3, indices=(0, 1))
    noise = run.latents.clone()
    ours = sample_latents(label_denoiser(pipe, (1, 2), 4.0), pipe.scheduler, 6, seed=3, indices=(0, 1))
    theirs = pipe([1, 2], num_inference_steps=6, generator=image_generators(3, (0, 1)), output_type="np").images
    assert noise.shape == ours.shape
    pixels = decode(pipe.vae, ours).numpy()
    assert np.abs(pixels - np.round(np.asarray(theirs) * 255)).max() <= 1


def test_an_image_depends_on_its_seed_and_index_alone(folder: Path) -> None:
    pipe = load_pipeline(folder, sampler="ddpm")  # draws noise at every step

    def images(labels: tuple[int, ...], indices: tuple[int, ...]) -> torch.Tensor:
        return sample_latents(label_denoiser(pipe, labels, 4.0), pipe.scheduler, 5, 7, indices)

    together = images((1, 2, 3), (10, 11, 12))
    alone = torch.cat([images((label,), (index,)) for label, index in ((1, 10), (2, 11), (3, 12))])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
    assert not torch.equal(images((1,), (10,)), images((1,), (11,)))


def test_learned_range_variance_reaches_the_sampler(folder: Path) -> None:
    """IDDPM (arXiv 2102.09672, Eq. 15): one step against the formula, float64."""
    pipe = load_pipeline(folder, sampler="iddpm")
    assert isinstance(pipe.scheduler, DDPMScheduler)
    run = Trajectory(label_denoiser(pipe, (1,), 4.0), pipe.scheduler, 10, seed=0, indices=(0,))
    generator = image_generators(0, (0,))[0]
    x = torch.randn(4, 8, 8, generator=generator).double()
    z = torch.randn(4, 8, 8, generator=generator).double()
    output = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(5))
    run.advance(0, output)

    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    t, before = int(run.timesteps[0]), int(run.timesteps[1])
    a_t, a_before = abar[t], abar[before]
    beta = 1 - a_t / a_before
    cond, uncond = output.double()
    eps = uncond[:4] + 4.0 * (cond[:4] - uncond[:4])
    x0 = (x - (1 - a_t).sqrt() * eps) / a_t.sqrt()
    mean = a_before.sqrt() * beta / (1 - a_t) * x0 + (1 - beta).sqrt() * (1 - a_before) / (1 - a_t) * x
    fraction = (cond[4:] + 1) / 2
    log_variance = fraction * beta.log() + (1 - fraction) * ((1 - a_before) / (1 - a_t) * beta).log()
    expected = mean + (0.5 * log_variance).exp() * z
    torch.testing.assert_close(run.latents[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_sampler_settings_are_plain_json_and_leave_the_scheduler_alone() -> None:
    scheduler = make_sampler("dpm", TRAINING)
    before = dict(scheduler.__dict__)
    spec = sampler_spec(scheduler, 50)
    assert scheduler.__dict__.keys() == before.keys() and scheduler.num_inference_steps is None
    assert spec.settings["lambda_min_clipped"] == "-inf" and len(spec.timesteps) == 50
