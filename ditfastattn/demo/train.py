"""Make the demo: `python -m ditfastattn.demo.train --art node_modules --out build/demo`.

Reads the art, trains the autoencoder, then the transformer on its latents, and writes `pipeline/`,
`samples.png`, `curve.png` and `training.json` to the output folder. Run again with the same folder, it goes
on from the checkpoints there; `--iterations` may be changed then, to settle the length of the run late.
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
from diffusers import AutoencoderKL, DiTPipeline

from ditfastattn.demo import data as demo_data
from ditfastattn.demo import figures
from ditfastattn.demo.classes import CLASSES, NO_FLIP
from ditfastattn.demo.export import export
from ditfastattn.demo.loop import Recipe, Run
from ditfastattn.demo.model import build_transformer
from ditfastattn.demo.train_dit import Latents, encode_training, train_dit
from ditfastattn.demo.vae import build_vae, encode, psnr, reconstruct, standardise, train_vae


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m ditfastattn.demo.train", description=__doc__.split("\n\n")[0])
    p.add_argument("--art", type=Path, required=True, help="the node_modules folder with the packages of ART.md")
    p.add_argument("--out", type=Path, required=True, help="where checkpoints and results go")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--drawings", type=int, default=6, help="drawings of each icon, shifted and zoomed")
    p.add_argument("--vae-iterations", type=int, default=5000)
    p.add_argument("--vae-seconds", type=float, help="end the autoencoder's training by then, rate decayed")
    p.add_argument("--vae-width", type=int, default=48, help="channels at 64 px; twice as many at 32 px")
    p.add_argument("--iterations", type=int, default=Recipe.iterations)
    p.add_argument("--seconds", type=float, help="pause the transformer's training after this time")
    p.add_argument("--batch", type=int, default=Recipe.batch)
    p.add_argument("--lr", type=float, default=Recipe.lr)
    p.add_argument("--warmup", type=int, default=Recipe.warmup)
    p.add_argument("--layers", type=int, default=13)
    p.add_argument("--heads", type=int, default=3)
    p.add_argument("--head-dim", type=int, default=64)
    p.add_argument("--save-every", type=int, default=2000)
    p.add_argument("--each", type=int, default=8, help="samples of each class in samples.png; 0 for no picture")
    p.add_argument("--sample-steps", type=int, default=50)
    p.add_argument("--no-compile", action="store_true", help="do without torch.compile on a GPU")
    return p


def autoencoder(args: argparse.Namespace, train: torch.Tensor, held_out: torch.Tensor,
                compile_model: bool) -> tuple[AutoencoderKL, dict]:  # fmt: skip
    """Load the autoencoder from `vae.pt` or train it on drawings (N, V, H, W, 3); measure it on held-out
    ones."""
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


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
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

    recipe = Recipe(args.iterations, args.batch, args.lr, args.warmup, seed=args.seed)
    torch.manual_seed(args.seed)
    transformer = build_transformer(args.layers, args.heads, args.head_dim, latents.z.shape[-1]).to(device)
    run, checkpoint = Run.start(transformer, recipe), args.out / "dit.pt"
    if checkpoint.exists():
        run.load(checkpoint)
        print(f"going on from iteration {run.iteration}", flush=True)
    first, started = run.iteration, time.monotonic()
    finished = train_dit(run, latents, recipe, checkpoint, args.save_every, unseen, args.seconds, compile_model)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.monotonic() - started
    rate = (run.iteration - first) / max(seconds, 1e-9)

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
