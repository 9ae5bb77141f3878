"""``python -m eval xformers``: DiT by materialised softmax, by SDPA and by xFormers, the weights kept.

The experiment of the project's first source document, done so that its numbers mean something: every variant computes
the same function (checked before any time is taken), from the model's own weights, on the layout each operator wants.
N images are one batch of 2 N rows, both guidance branches. A call is one transformer call in eager mode; a run is a
whole sampling of 50 DPM-Solver++ steps in latent space. Variants are interleaved; medians.

"as written" is what the document's code computes: q, k, v as (B, H, N, D) handed to an operator that reads
(B, N, H, D), and q scaled once more. It is timed beside the others because the document's speed-up is of it; it is not
attention over tokens.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from ditfastattn import load_pipeline
from ditfastattn.cost.steps import seconds
from ditfastattn.errors import DitFastAttnError
from ditfastattn.ranks import ALONE
from ditfastattn.samplers import make_sampler
from ditfastattn.sampling import sample_latents
from eval.arguments.xformers import parser
from eval.geometry import TRAINING, XL
from eval.kernels import versions
from eval.record import command_line, device_name
from eval.xformers_plot import CLAIM, bars, lines
from eval.xformers_variants import (
    AS_WRITTEN,
    CHECKED_IMAGES,
    MATERIALISED,
    VARIANTS,
    XFORMERS,
    call_of,
    check,
    denoiser_of,
    equivalence,
    variant,
    why_no_xformers,
)
from plans.files import write_text

GEOMETRIES = {"DiT-XL/2-256": 2, "DiT-XL/4-256": 4}  # patch size


def geometry(patch: int, device: str, dtype: torch.dtype, quick: bool) -> Any:
    """DiT-XL at 256 px (arXiv 2212.09748, Table 1) with random weights; ``quick``: two narrow layers."""
    torch.manual_seed(0)
    size = XL | ({"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24} if quick else {})
    with torch.device(device):
        model = DiTTransformer2DModel(sample_size=32, patch_size=patch, **size)
    for block in model.transformer_blocks:  # as drawn, scores hardly differ and any attention is a mean of values
        for linear in (block.attn1.to_q, block.attn1.to_k):
            linear.weight.data *= 3
    return nn.Module.to(model, dtype).eval()  # diffusers' own warns of float32 modules, of which there are none


def timed(model: Any, names: Sequence[str], work: Callable[[], Any], repeats: int) -> dict[str, dict[str, Any]]:
    """Median seconds of ``work`` by each variant, in turn, and the peak of memory above what was held before."""
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    taken: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, int | None] = dict.fromkeys(names)
    for repeat in range(repeats + 1):
        for name in names:
            with variant(model, name):
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                    held = torch.cuda.memory_allocated()
                took = seconds(work, device)
                if on_gpu:
                    peaks[name] = torch.cuda.max_memory_allocated() - held
                if repeat:  # the first round warms up
                    taken[name].append(took)
    return {name: {"seconds": statistics.median(taken[name]), "peak_bytes": peaks[name]} for name in names}


def models(options: argparse.Namespace, dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    """(name, transformer): the one asked for, or both geometries in turn."""
    if options.model is None:
        for label, patch in GEOMETRIES.items():
            narrow = "narrow " if options.quick else ""
            yield narrow + label, geometry(patch, options.device, dtype, options.quick)
        return
    transformer = load_pipeline(options.model, dtype=dtype, device=options.device).transformer
    if not isinstance(transformer, DiTTransformer2DModel):
        raise DitFastAttnError(f"{options.model} holds a {type(transformer).__name__}; this experiment is on DiT")
    yield Path(options.model).name, transformer


@torch.no_grad()
def measure(label: str, model: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model, the equivalence of its variants printed first."""
    names = list(VARIANTS)
    if why_no_xformers(model):
        names.remove(XFORMERS)
    errors = equivalence(model, names)
    print(f"\n{label}: outputs against materialised softmax in float32, {CHECKED_IMAGES} images with guidance")
    for name, error in errors.items():
        note = "  (another function: no token sees another)" if name == AS_WRITTEN else ""
        print(f"  {name:<13} max {error['max']:.2e}   relative {error['relative']:.2e}{note}")
    check(errors)

    rows: list[dict[str, Any]] = []
    for images in options.batches:
        found = timed(model, names, call_of(model, images), options.repeats)
        rows += _rows(label, "call", images, found, errors)
    scheduler = make_sampler("dpm", TRAINING)
    denoiser = denoiser_of(model, options.images)

    def sampling() -> None:
        sample_latents(denoiser, scheduler, options.steps, 0, range(options.images))

    rows += _rows(label, "run", options.images, timed(model, names, sampling, options.runs), errors)
    print(table(rows), flush=True)
    return rows


def _rows(
    label: str, what: str, images: int, found: dict[str, dict[str, Any]], errors: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    base = found[MATERIALISED]["seconds"]
    return [
        {
            "model": label,
            "what": what,
            "images": images,
            "variant": name,
            "seconds": round(values["seconds"], 6),
            "speedup": round(base / values["seconds"], 3),
            "peak_bytes": values["peak_bytes"],
            "relative_error": errors[name]["relative"],
            "equivalent": name != AS_WRITTEN,
        }
        for name, values in found.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row; the speed-up is over materialised softmax at the same work."""
    lines = [f"{'':<6}{'images':>7}  {'attention':<13}{'ms':>11}{'x materialised':>16}{'peak MiB':>10}"]
    for row in rows:
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        lines.append(
            f"{row['what']:<6}{row['images']:>7}  {row['variant']:<13}{1000 * row['seconds']:>11.2f}"
            f"{row['speedup']:>16.2f}{peak:>10}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure, print, write xformers.json, xformers-bars.png, xformers-lines.png (--quick: xformers-quick*)."""
    options = parser().parse_args(argv)
    options.device = ALONE.device(options.device)
    if options.quick:
        options.batches, options.images, options.steps, options.repeats = "1,2", 2, 2, 1
    try:
        options.batches = [int(part) for part in options.batches.split(",")]
    except ValueError:
        raise DitFastAttnError(f"--batches {options.batches!r} are not numbers; write them like 10,50,100") from None
    if min(*options.batches, options.images, options.steps, options.repeats, options.runs) < 1:
        raise DitFastAttnError("batches, images, steps, repeats and runs must be at least 1")
    on_gpu = options.device.startswith("cuda")
    if not on_gpu and not options.quick:
        raise DitFastAttnError("DiT-XL is measured on a CUDA GPU, and --device is none; --quick runs anywhere")
    dtype = getattr(torch, options.dtype or ("bfloat16" if on_gpu else "float32"))
    device = device_name(options.device)

    weights = "random" if options.model is None else options.model
    print(f"{weights} weights, {str(dtype).removeprefix('torch.')}, eager mode, on {device}", flush=True)
    rows: list[dict[str, Any]] = []
    for label, model in models(options, dtype):
        missing = why_no_xformers(model)
        if missing and not rows:
            print(f"xFormers is left out: {missing}")
        rows += measure(label, model, options)
    print("\n" + CLAIM)

    result = {
        "command": command_line("xformers", argv),
        "device": device,
        "versions": versions(),
        "date": date.today().isoformat(),
        "weights": weights,
        "dtype": str(dtype).removeprefix("torch."),
        "claim": CLAIM,
        "rows": rows,
    }
    name = "xformers-quick" if options.quick else "xformers"
    options.out.mkdir(parents=True, exist_ok=True)
    bars(rows, options.images, device, options.out / f"{name}-bars.png")
    lines(rows, device, options.out / f"{name}-lines.png")
    write_text(options.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    print(f"written: {options.out / name}.json, -bars.png, -lines.png")
