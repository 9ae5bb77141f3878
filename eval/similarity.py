"""``python -m eval similarity A B``: how far the images of one run are from the same images of another.

Both runs began from the same noise, so image i of one is compared with image i of the other: PSNR and SSIM of the
pixels, LPIPS where its weights are to be had, and the relative L2 distance of the latents where both runs saved them.
Of videos: PSNR over all pixels of all frames, the others the mean over the frames.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from tqdm import tqdm

from calibration.calibrate import package_versions
from ditfastattn.ranks import ALONE
from eval.arguments.similarity import parser
from eval.perceptual import HOW, Perceptual, load_perceptual
from eval.runs import Run, RunError, noise_differences
from eval.similarity_picture import save_pairs
from plans.files import write_text

HIGHER_IS_CLOSER = {"psnr": True, "ssim": True, "lpips": False, "latent_rel_l2": False}


@dataclass
class Similarity:
    """Values by image index; ``psnr`` is infinite where two images are equal.

    Attributes:
        values: measure -> one value for each image, float64 (N,).
        lpips: the name of the network behind "lpips", None if it was left out.
    """

    values: dict[str, np.ndarray]
    lpips: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> int:
        """Images that are the same to the last bit."""
        return int(np.isinf(self.values["psnr"]).sum())

    @property
    def pooled_psnr(self) -> float:
        """PSNR of the squared error over all pixels of all images, dB, as calibration reports it."""
        error = np.mean(10 ** (-self.values["psnr"] / 10))
        return -10 * math.log10(error) if error else math.inf

    def summary(self) -> dict[str, dict[str, float | None]]:
        """measure -> mean, median, p5 and p95 (5 % of the images lie below, above); None where infinite."""
        return {name: spread(values) for name, values in self.values.items()}

    def worst(self, measure: str) -> float | None:
        """The 5th percentile counted from the worst image."""
        return self.summary()[measure]["p5" if HIGHER_IS_CLOSER[measure] else "p95"]


def spread(values: np.ndarray) -> dict[str, float | None]:
    """Mean, median, 5th and 95th percentile of (N,) values; None where infinite."""
    # Between two infinities nothing can be interpolated: then a percentile is one of the values.
    finite = bool(np.isfinite(values).all())
    low, median, high = np.percentile(values, [5, 50, 95], method="linear" if finite else "lower")
    found = {"mean": values.mean(), "median": median, "p5": low, "p95": high}
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}


def compare(a: Run, b: Run, perceptual: Perceptual | None = None, batch: int = 32, device: str = "cpu") -> Similarity:
    """Every image of ``a`` with the image of the same index of ``b``.

    Args:
        perceptual: measures LPIPS on its own device; None leaves it out.
        device: where SSIM is computed.

    Raises:
        RunError: the runs differ in what decides the noise (all differences listed; steps may), or in the size of
            their images.
    """
    differences = noise_differences(a, b)
    if differences:
        listed = "".join(f"\n  - {line}" for line in differences)
        raise RunError(
            f"image i of {a.path} and of {b.path} are not made from the same noise; sample both with the same "
            f"settings:{listed}"
        )
    found: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    if perceptual is not None:
        found["lpips"] = []
    if a.is_video != b.is_video:
        raise RunError(f"one of {a.path} and {b.path} holds videos, the other images; compare runs of one kind")
    if a.is_video:
        batch = max(1, batch // int(a.record["size"][0]))
    pairs = zip(a.batches(batch), b.batches(batch), strict=True)
    for (_, ours), (_, theirs) in tqdm(pairs, total=math.ceil(a.n / batch), desc="pairs", leave=False, disable=None):
        if ours.shape != theirs.shape:
            sizes = " and ".join("x".join(map(str, images.shape[-2:])) for images in (ours, theirs))
            raise RunError(f"{a.path} and {b.path} have images of {sizes} pixels; compare runs of one size")
        found["psnr"].append(psnr(ours, theirs))
        found["ssim"].append(by_frame(ssim, ours, theirs, device))
        if perceptual is not None:
            found["lpips"].append(by_frame(perceptual, ours, theirs, perceptual.shift.device))
    values = {name: torch.cat(parts).double().numpy() for name, parts in found.items()}
    result = Similarity(values, None if perceptual is None else perceptual.name)
    latents = [(a.latent(index), b.latent(index)) for index in range(a.n)] if a.has_latents and b.has_latents else []
    if latents:
        values["latent_rel_l2"] = np.array([float((x - y).norm() / y.norm()) for x, y in latents])
    else:
        result.notes.append("the latents were not saved by both runs, so they are not compared")
    return result


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """10 log10(255^2 / mean squared error) of each pair, infinite where equal.

    (B, 3, H, W) uint8, of videos (B, T, 3, H, W), to (B,) float64.
    """
    error = (a.double() - b.double()).square().mean(tuple(range(1, a.dim())))
    return 10 * torch.log10(255**2 / error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair (torchmetrics, Gaussian window of 11): (B, 3, H, W) uint8 to (B,) float64.

    In float64, since a variance as a difference of squares cancels in float32, and more so in TF32.
    """
    found = structural_similarity_index_measure(a.double(), b.double(), data_range=255.0, reduction="none")
    assert isinstance(found, Tensor)
    return found.reshape(-1)


def by_frame(
    measure: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """A measure of (B, 3, H, W) pairs on its device; of videos (B, T, 3, H, W) its mean over their frames: (B,)."""
    ours, theirs = (pixels.flatten(0, -4).to(device) for pixels in (a, b))
    found = measure(ours, theirs).cpu()
    return found.reshape(len(a), -1).mean(1) if a.dim() == 5 else found


def table(similarity: Similarity) -> str:
    """One line a measure: mean, median and the worst twentieth."""
    lines = [f"{'':<24}{'mean':>12}{'median':>12}{'worst 5 %':>12}"]
    for measure, row in similarity.summary().items():
        name = (similarity.lpips or "") if measure == "lpips" else _TITLES[measure]
        cells = [row["mean"], row["median"], similarity.worst(measure)]
        lines.append(f"{name:<24}" + "".join(f"{text(measure, value):>12}" for value in cells))
    if similarity.equal:
        lines.append(f"{similarity.equal} of {len(similarity.values['psnr'])} pairs are equal to the last bit")
    return "\n".join([*lines, *similarity.notes])


_TITLES = {"psnr": "PSNR", "ssim": "SSIM", "latent_rel_l2": "latents, relative L2"}


def text(measure: str, value: float | None) -> str:
    """A value as tables show it; None is an infinite PSNR."""
    if value is None:
        return "equal"
    return f"{value:.2f} dB" if measure == "psnr" else f"{value:.4f}"


def as_json(a: Run, b: Run, similarity: Similarity) -> dict[str, Any]:
    """What is written: the runs, the spread of each measure, and every image's values (null: equal images)."""
    images = [
        {"index": i, **{name: _finite(values[i]) for name, values in similarity.values.items()}} for i in range(a.n)
    ]
    return {
        "a": a.name_beside(b),
        "b": b.name_beside(a),
        "n": a.n,
        "psnr_pooled": _finite(similarity.pooled_psnr),
        "equal_images": similarity.equal,
        "lpips": similarity.lpips,
        "summary": {
            name: {key: None if value is None else round(value, 6) for key, value in row.items()}
            for name, row in similarity.summary().items()
        },
        "images": images,
    }


def _finite(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def main(argv: Sequence[str] | None = None) -> None:
    """Print the spread of each measure; write similarity.json and similarity.png."""
    options = parser().parse_args(argv)
    options.device = ALONE.device(options.device)
    if options.batch < 1:
        raise RunError(f"--batch must be at least 1, got {options.batch}")
    a, b = Run.open(options.a, videos=True), Run.open(options.b, videos=True)
    perceptual = load_perceptual(options.lpips, options.device)
    if perceptual is None and options.lpips == "auto":
        print(f"LPIPS is left out, as its weights are not here: {HOW}")
    found = compare(a, b, perceptual, options.batch, options.device)
    steps = "" if a.steps == b.steps else f", of {a.steps} steps and {b.steps}"
    print(f"{a.n} pairs, {options.a} against {options.b}{steps}\n{table(found)}")
    out = options.out or options.a
    result = {
        "command": shlex.join(["python", "-m", "eval", "similarity", *(sys.argv[2:] if argv is None else argv)]),
        "versions": package_versions(),
        "date": date.today().isoformat(),
        **as_json(a, b, found),
    }
    write_text(out / "similarity.json", json.dumps(result, indent=1) + "\n")
    save_pairs(out / "similarity.png", a, b, found.values["psnr"], found.values["ssim"])
    print(f"written: {out / 'similarity.json'}, {out / 'similarity.png'}")
