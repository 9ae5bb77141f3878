"""Run folders as ``python -m eval sample`` writes them, filled by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RECORD = {"seed": 0, "model": "tiny", "sampler": {"class_name": "DPM"}, "steps": 4, "guidance": 4.0}


def write_run(path: Path, images: np.ndarray, *, npz: bool = False, **record: Any) -> Path:
    """A finished run of (N, H, W, 3) uint8 images; ``record`` overrides what run.json says."""
    n = len(images)
    (path / "images").mkdir(parents=True)
    if npz:
        np.savez(path / "samples.npz", arr_0=images)
    else:
        for index, image in enumerate(images):
            Image.fromarray(image).save(path / "images" / f"{index:06d}.png")
    (path / "run.json").write_text(json.dumps({"n": n, "labels": list(range(n)), **RECORD, **record}))
    return path


def pictures(n: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth coloured pictures (N, size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = rng.uniform(1, 6, (n, 3, 2)), rng.uniform(0, 6, (n, 3))
    angle = waves[0][..., 0, None, None] * x + waves[0][..., 1, None, None] * y + waves[1][..., None, None]
    return ((np.sin(angle) * 0.5 + 0.5) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def noisy(images: np.ndarray, sigma: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)
