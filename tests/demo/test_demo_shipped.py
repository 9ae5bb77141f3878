"""The weights that are shipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel

import ditfastattn.demo
from ditfastattn.demo.classes import CLASSES
from ditfastattn.models import adapt
from ditfastattn.pipelines import load_pipeline
from plans.macs import full_macs

FOLDER = ditfastattn.demo.pipeline_path()
TRANSFORMERS = [FOLDER / name for name in ditfastattn.demo.TRANSFORMERS.values()]


@pytest.fixture(scope="module", params=TRANSFORMERS, ids=lambda path: path.name)
def pipe(request: pytest.FixtureRequest) -> DiTPipeline:
    transformer = DiTTransformer2DModel.from_pretrained(FOLDER, subfolder=request.param.name)
    pipe = DiTPipeline.from_pretrained(FOLDER, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_sizes() -> None:
    sizes = {path: sum(f.stat().st_size for f in path.iterdir()) for path in TRANSFORMERS}
    rest = sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) - sum(sizes.values())
    assert [size + rest <= limit for size, limit in zip(sizes.values(), (28e6, 20e6), strict=True)] == [True, True]


def test_labels_and_shapes(pipe: DiTPipeline) -> None:
    assert [pipe.labels[name] for name in CLASSES] == list(range(len(CLASSES)))
    config = pipe.transformer.config
    assert (config.sample_size, config.in_channels, config.out_channels, config.num_embeds_ada_norm) == (32, 4, 8, 1000)
    assert pipe.scheduler.config.algorithm_type == "dpmsolver++"


def test_the_first_needs_no_word_of_its_transformer() -> None:
    given = DiTPipeline.from_pretrained(FOLDER).transformer.state_dict()
    loaded = load_pipeline("demo").transformer.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in given.items())


def test_attention_is_most_of_the_long_one() -> None:
    spec = adapt(load_pipeline("demo-long").transformer).spec()
    mlp = 8 * spec.tokens * spec.width**2  # a hidden layer of 4 C
    assert spec.tokens == 1024
    assert full_macs(spec) / (full_macs(spec) + mlp) >= 0.6


def test_it_predicts_noise_and_its_variance_is_trained(pipe: DiTPipeline) -> None:
    """On the latent of a plain red disc at a low noise level, the error is far below that of predicting nothing."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij")
    disc = torch.where(x**2 + y**2 < 0.7, torch.tensor([0.8, -0.8, -0.8]).view(3, 1, 1), torch.ones(3, 1, 1))
    with torch.no_grad():
        z = pipe.vae.encode(disc[None]).latent_dist.mode()
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        t = torch.tensor([400])
        label = torch.tensor([pipe.labels["coloured shape"]])
        out = pipe.transformer(pipe.scheduler.add_noise(z, noise, t), timestep=t, class_labels=label).sample
    assert ((out[:, :4] - noise) ** 2).mean() < 0.05
    assert out[:, 4:].std() > 1e-3


def test_guided_samples_are_drawings_on_white(pipe: DiTPipeline) -> None:
    labels = [pipe.labels["smiling face"]]
    generator = torch.Generator().manual_seed(0)
    images = pipe(labels, generator=generator, num_inference_steps=5, output_type="np").images
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) > 0.95
    face = images[0, 8:56, 8:56].mean((0, 1))
    assert face[0] > face[2] + 0.2  # yellow
