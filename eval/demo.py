"""How good a demo's pictures are: Frechet distances in EfficientNet-Lite0 features.

Samples are drawn with the classes in the held-out data's shares. A Frechet distance falls as more vectors are
seen, so each number stands with its counts, beside what real images give at the same counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import __version__ as diffusers_version

from ditfastattn.demo import data as demo_data
from ditfastattn.demo import figures
from ditfastattn.demo.vae import psnr, reconstruct
from ditfastattn.pipelines import load_pipeline
from ditfastattn.ranks import ALONE
from eval.arguments.demo import parser
from eval.features import NAME, WIDTH, features, load_network
from eval.frechet import Moments, frechet_distance
from eval.record import device_name
from plans.files import write_text


def shares(labels: np.ndarray, count: int) -> np.ndarray:
    """`count` labels, sorted, in the shares of `labels`, rounded by largest remainder."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (count / counts.sum())
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: count - whole.sum()]] += 1
    return np.repeat(classes, whole)


def command(args: argparse.Namespace) -> str:
    """The command line that gives this result, with the folders of this machine left out."""
    model = [] if args.model == "demo" else ["--model", Path(args.model).name]
    numbers = ("samples", "steps", "guidance", "batch", "seed")
    return " ".join(
        ["python -m eval demo --art node_modules", *model, *(f"--{n} {getattr(args, n):g}" for n in numbers)]
    )


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.device = ALONE.device(args.device)
    name = Path(args.model).name.replace("-", "_")
    out = args.out or Path(f"runs/demo/{name}_quality.json")
    on_gpu = torch.device(args.device).type == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    art = demo_data.prepare(args.art, drawings=1)
    real, held = art.images[:, 0], art.held_out
    network = load_network(args.device)

    def moments(images: np.ndarray) -> Moments:
        return Moments.of((batch.numpy() for batch in features(network, images)), WIDTH)

    pipe = load_pipeline(args.model, dtype=dtype, device=args.device)
    labels = shares(art.labels[held], args.samples)
    started = time.monotonic()
    samples = figures.sample(pipe, labels.tolist(), args.steps, args.guidance, args.seed, args.batch)
    seconds = time.monotonic() - started
    pipe.vae.float()
    rebuilt = reconstruct(pipe.vae, torch.from_numpy(real[held])).numpy()

    # Halves by emoji, as the held-out split is, so that no emoji is in both.
    families = np.array([demo_data.emoji_family(code) for code in art.emoji])
    order = np.random.default_rng(args.seed).permutation(np.unique(families))
    first = np.isin(families, order[: len(order) // 2])
    held_moments, train_moments, drawn = moments(real[held]), moments(real[~held]), moments(samples)
    subset = np.random.default_rng(args.seed).choice(len(samples), min(len(samples), int(held.sum())), replace=False)
    few = moments(samples[subset])

    def row(a: Moments, b: Moments) -> dict[str, float | int]:
        return {"distance": round(frechet_distance(a, b), 3), "count_a": a.count, "count_b": b.count}

    report: dict[str, Any] = {
        "what": "Frechet distances; lower is closer. Not the FID.",
        "features": NAME,
        "distances": {
            "samples to held-out images": row(drawn, held_moments),
            "training images to held-out images": row(train_moments, held_moments),
            "samples to training images": row(drawn, train_moments),
            "as many samples as held-out images, to training images": row(few, train_moments),
            "half of the images to the other half": row(moments(real[first]), moments(real[~first])),
            "autoencoder's held-out reconstructions to held-out images": row(moments(rebuilt), held_moments),
        },
        "autoencoder_held_out_psnr_db": round(psnr(torch.from_numpy(rebuilt), torch.from_numpy(real[held])), 2),
        "sampling": {
            "steps": args.steps,
            "scheduler": f"{type(pipe.scheduler).__name__} ({pipe.scheduler.config.algorithm_type})",
            "guidance": args.guidance,
            "seed": args.seed,
            "batch": args.batch,
            "dtype": str(dtype).removeprefix("torch."),
            "seconds": round(seconds, 1),
        },
        "command": command(args),
        "device": device_name(args.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers_version,
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    write_text(out, json.dumps(report, indent=2) + "\n")
    for name, value in report["distances"].items():
        print(f"{value['distance']:10.3f}  {name} ({value['count_a']} / {value['count_b']})")
    if args.grid is not None:
        figures.grid(pipe.to(args.device, dtype), args.grid, steps=args.steps, seed=args.seed)


if __name__ == "__main__":
    main()
