"""Make a demo: `python -m ditfastattn.demo.train --art node_modules --out build/demo`.

Reads the art, trains the autoencoder, then the transformer on its latents, and writes `pipeline/`,
`samples.png`, `curve.png` and `training.json` to the output folder. Run again with the same folder, it goes
on from the checkpoints there; `--iterations` may be changed then, to settle the length of the run late.
With `--start` both begin from a trained pipeline, and its autoencoder stays as it is.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from ditfastattn.demo import data as demo_data
from ditfastattn.demo import figures, pipeline_path
from ditfastattn.demo.arguments import parse
from ditfastattn.demo.classes import CLASSES, NO_FLIP
from ditfastattn.demo.export import export
from ditfastattn.demo.loop import Recipe, Run
from ditfastattn.demo.model import build_transformer
from ditfastattn.demo.refine import refine
from ditfastattn.demo.train_dit import Latents, encode_training, train_dit
from ditfastattn.demo.vae import build_vae, encode, psnr, reconstruct, standardise, train_vae


def autoencoder(args: argparse.Namespace, train: torch.Tensor, held_out: torch.Tensor,
                compile_model: bool) -> tuple[AutoencoderKL, dict]:  # fmt: skip
    """Take the autoencoder of `--start`, load it from `vae.pt` or train it on drawings (N, V, H, W, 3); measure it
    on held-out ones."""
    if args.start:
        vae = AutoencoderKL.from_pretrained(_start(args), subfolder="vae", local_files_only=True).to(args.device)
        vae.eval().requires_grad_(False)
        return vae, {"of": args.start, "held_out_psnr_db": psnr(reconstruct(vae, held_out).cpu(), held_out.cpu())}
    path = args.out / "vae.pt"
    torch.manual_seed(args.seed)
    vae = build_vae((args.vae_width, 2 * args.vae_width), train.shape[2]).to(args.device)
    if path.exists():
        state = torch.load(path, map_location=args.device, weights_only=True)
        vae.load_state_dict(state["vae"])
        return vae.eval().requires_grad_(False), state["report"]
    started = time.monotonic()
    losses = train_vae(
        vae, train.flatten(0, 1), args.vae_iterations, batch=min(256, 4 * args.batch), seed=args.seed,
        seconds=args.vae_seconds, compile_model=compile_model,
    )  # fmt: skip
    vae.eval().requires_grad_(False)
    standardise(vae, train[:, 0])
    report = {
        "seconds": round(time.monotonic() - started, 1),
        "l1": losses,
        "held_out_psnr_db": psnr(reconstruct(vae, held_out).cpu(), held_out.cpu()),
    }
    torch.save({"vae": vae.state_dict(), "report": report}, path)
    print(
        f"autoencoder: {report['seconds']} s, {report['held_out_psnr_db']:.2f} dB on held-out images",
        flush=True,
    )
    return vae, report


def transformer(args: argparse.Namespace, sample_size: int) -> DiTTransformer2DModel:
    """A new transformer, or one that starts from the blocks of `--start`."""
    torch.manual_seed(args.seed)
    if not args.start:
        return build_transformer(args.layers, args.heads, args.head_dim, sample_size, args.patch)
    trained = DiTTransformer2DModel.from_pretrained(_start(args), subfolder="transformer", local_files_only=True)
    return refine(trained, args.blocks or range(trained.config.num_layers), args.patch)


def _start(args: argparse.Namespace) -> Path:
    return pipeline_path() if args.start == "demo" else Path(args.start)


def main(argv: list[str] | None = None) -> None:
    begun = time.monotonic()
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    compile_model = on_gpu and not args.no_compile
    torch.set_float32_matmul_precision("high")

    art = demo_data.prepare(args.art, args.drawings, args.seed)
    images, labels = torch.from_numpy(art.images), torch.from_numpy(art.labels)
    kept = torch.from_numpy(~art.held_out)
    train, held_out = images[kept].to(device), images[~kept][:, 0].to(device)
    print(f"{len(train)} training and {len(held_out)} held-out images of {len(CLASSES)} classes", flush=True)

    vae, vae_report = autoencoder(args, train, held_out, compile_model)
    mirror = torch.tensor([name not in NO_FLIP for name in CLASSES])[labels]
    weights = torch.from_numpy(demo_data.class_weights(art.labels[~art.held_out])).float()
    latents = Latents(encode_training(vae, train), labels[kept].to(device), weights.to(device), mirror[kept].to(device))
    unseen = (torch.cat(list(encode(vae, held_out))), labels[~kept].to(device))

    recipe = Recipe(args.iterations, args.batch, args.lr, args.warmup, ema=args.ema, seed=args.seed)
    run, checkpoint = Run.start(transformer(args, latents.z.shape[-1]).to(device), recipe), args.out / "dit.pt"
    if checkpoint.exists():
        run.load(checkpoint)
        print(f"going on from iteration {run.iteration}", flush=True)
    first, started = run.iteration, time.monotonic()
    deadline = None if args.deadline is None else begun + args.deadline
    finished = train_dit(
        run, latents, recipe, checkpoint, args.save_every, unseen, args.seconds, deadline, compile_model
    )
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.monotonic() - started
    rate = (run.iteration - first) / max(seconds, 1e-9)

    run.take_best()
    size = export(args.out / "pipeline", run.ema, vae)
    report = {
        "iteration": run.iteration,
        "finished": finished,
        "iterations_per_second": rate,
        "images_per_second": rate * args.batch,
        "bytes": size,
        "arguments": {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("art", "out")
        },
        "training_images": len(train),
        "held_out_images": len(held_out),
        "class_counts": dict(zip(CLASSES, np.bincount(art.labels, minlength=len(CLASSES)).tolist(), strict=True)),
        "autoencoder": vae_report,
        "curve": run.curve,
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "cpu",
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    (args.out / "training.json").write_text(json.dumps(report) + "\n")
    for point in run.curve[-1:]:
        print(
            f"iteration {run.iteration}, {rate * args.batch:.0f} images/s, {size / 1e6:.2f} MB, {point}",
            flush=True,
        )
    if run.curve:
        figures.curve(run.curve, args.out / "curve.png")
    if args.each:
        pipe = DiTPipeline.from_pretrained(
            args.out / "pipeline", torch_dtype=torch.float16 if on_gpu else torch.float32
        )
        figures.grid(pipe.to(device), args.out / "samples.png", args.each, steps=args.sample_steps, seed=args.seed)


if __name__ == "__main__":
    main()
