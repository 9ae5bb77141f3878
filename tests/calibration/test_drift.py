"""The drift that reports show, against its formulas, and that the compressed run is compressed."""

import math

import pytest
import torch
from small_models import random_plan, small_pipeline

from calibration.drift import Images, drift, sample
from ditfastattn.sampling import label_condition


def test_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    full = torch.randint(0, 256, (2, 16, 16, 3), generator=generator, dtype=torch.uint8)
    other = torch.randint(0, 256, (2, 16, 16, 3), generator=generator, dtype=torch.uint8)
    a, b = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    measured = drift(Images(a, full), Images(b, other))
    error = sum((float(x) - float(y)) ** 2 for x, y in zip(full.flatten(), other.flatten(), strict=True)) / full.numel()
    assert measured.psnr == pytest.approx(10 * math.log10(255**2 / error))
    assert measured.latent_rel_l2 == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-5)
    assert -1 <= measured.ssim < 0.2
    same = drift(Images(a, full), Images(a, full))
    assert (same.psnr, same.latent_rel_l2) == (math.inf, 0) and same.ssim == pytest.approx(1)


def test_compressed_images_are_compressed_and_start_from_the_same_noise() -> None:
    pipe = small_pipeline()
    plan, shown = random_plan(pipe), label_condition(pipe.transformer, (1, 2))
    full, compressed = (sample(pipe, plan, shown, 0, 0, "auto", compressed=c) for c in (False, True))
    assert 0 < drift(full, compressed).latent_rel_l2 < 1
    assert torch.equal(full.latents, sample(pipe, plan, shown, 0, 0, "auto", compressed=False).latents)
    assert not torch.equal(full.latents, sample(pipe, plan, shown, 0, 2, "auto", compressed=False).latents)
