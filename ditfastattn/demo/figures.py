"""The sample grid and the training curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DiTPipeline

from ditfastattn.demo.classes import CLASSES


def sample(pipe: DiTPipeline, labels: list[int], steps: int = 50, guidance: float = 4.0, seed: int = 0,
           batch: int = 256) -> np.ndarray:  # fmt: skip
    """Samples (N, 64, 64, 3) uint8 of the given class labels, in order; batch b draws from seed + b."""
    pipe.set_progress_bar_config(disable=True)
    out = []
    for number, start in enumerate(range(0, len(labels), batch)):
        generator = torch.Generator(pipe.device).manual_seed(seed + number)
        chunk = labels[start : start + batch]
        images = pipe(chunk, guidance, generator, num_inference_steps=steps, output_type="np").images
        out.append((np.asarray(images) * 255).round().astype(np.uint8))
    return np.concatenate(out)


def grid(pipe: DiTPipeline, path: Path, each: int = 8, columns: int = 2, steps: int = 50, seed: int = 0) -> None:
    """A picture with one row of `each` samples per class beside its name, in `columns` columns of classes."""
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(CLASSES) // columns)
    images = sample(pipe, [c for c in range(len(CLASSES)) for _ in range(each)], steps, seed=seed)
    size, text = images.shape[1], 150
    sheet = Image.new("RGB", (columns * (text + each * size), rows * size), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for c, name in enumerate(CLASSES):
        x, y = (c // rows) * (text + each * size), (c % rows) * size
        pen.text((x + 8, y + size // 2), name, fill="black", font=font, anchor="lm")
        for k in range(each):
            sheet.paste(Image.fromarray(images[c * each + k]), (x + text + k * size, y))
    # 256 colours keep a sheet of several hundred drawings well under a megabyte.
    sheet.quantize(256).save(path, optimize=True)


def curve(points: list[dict[str, float]], path: Path) -> None:
    """Losses against iterations: noise error in training and held out, and the bound of the variance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    held = [p for p in points if "held_out" in p]
    left.plot([p["iteration"] for p in points], [p["simple"] for p in points], lw=0.8, label="training")
    left.plot([p["iteration"] for p in held], [p["held_out"] for p in held], "o-", ms=3, label="held out, EMA")
    left.set(xlabel="iteration", ylabel="squared error of the noise", yscale="log")
    left.legend()
    right.plot([p["iteration"] for p in points], [p["bound"] for p in points], lw=0.8)
    late = [p["bound"] for p in points[len(points) // 20 :]]
    margin = (max(late) - min(late)) / 2 or 1.0
    right.set(
        xlabel="iteration",
        ylabel="variational term (bits/dim)",
        ylim=(min(late) - margin, max(late) + margin),
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
