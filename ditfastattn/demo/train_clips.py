"""Train a small Open-Sora on clips.

    python -m ditfastattn.demo.clips --art node_modules --out build/stills.npz
    python -m ditfastattn.demo.train_clips --stills build/stills.npz --out build/clips --seconds 400

It starts from the demo: its autoencoder, frame by frame, and some blocks of its transformer, so that only motion and
captions are to be learned. Writes `pipeline/`, which `--model` of every command takes, `curve.png` and
`training.json`; run again with the same folder, it goes on from the checkpoint there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor

from ditfastattn.demo import figures, pipeline_path
from ditfastattn.demo.arguments import PRESETS
from ditfastattn.demo.clip_pipeline import build_pipeline, build_text_encoder, build_tokenizer, export
from ditfastattn.demo.clips import CAPTIONS, FRAMES, SIZE, Stills, make_clips
from ditfastattn.demo.denoise import Predict, denoising, held_out_loss
from ditfastattn.demo.inflate import inflate
from ditfastattn.demo.loop import Recipe, Run, compile_each, train
from ditfastattn.demo.vae import encode
from ditfastattn.opensora import OpenSoraPipeline
from ditfastattn.opensora.pipeline import FPS
from plans.files import write_text


@dataclass(frozen=True)
class ClipLatents:
    """Clips on the device: z (N, 4, T, h, w), and the numbers of their captions, (N,)."""

    z: Tensor
    captions: Tensor

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw (size, 4, T, h, w) float32 latents and their (size,) captions."""
        index = torch.randint(len(self.z), (size,), generator=generator, device=self.z.device)
        return self.z[index].float(), self.captions[index]


@dataclass(frozen=True)
class Texts:
    """All captions as the text encoder reads them, (K, 1, L, C) and (K, L), on the device."""

    embeds: Tensor
    masks: Tensor


@torch.no_grad()
def encode_clips(vae: AutoencoderKL, images: Tensor, subjects: Tensor, count: int, seed: int,
                 frames: int = FRAMES) -> ClipLatents:  # fmt: skip
    """``count`` clips of drawings (N, H, W, 3) uint8 as latent means, in half the room on a GPU."""
    on_gpu = images.is_cuda
    parts, captions = [], []
    for clips, numbers in make_clips(images, subjects, count, seed, frames):
        with torch.autocast(images.device.type, torch.float16, enabled=on_gpu):
            z = torch.cat(list(encode(vae, clips.flatten(0, 1))))  # (n * T, 4, h, w)
        z = z.unflatten(0, (len(clips), -1)).transpose(1, 2)
        parts.append(z.to(torch.float16 if on_gpu else torch.float32))
        captions.append(numbers)
    return ClipLatents(torch.cat(parts), torch.cat(captions).to(images.device))


def told(device: torch.device, frames: int) -> dict[str, Tensor]:
    """What the model is told of every clip, (1,) each."""
    sizes = {"num_frames": frames, "height": SIZE, "width": SIZE, "ar": 1.0, "fps": FPS}
    return {name: torch.full((1,), float(value), device=device) for name, value in sizes.items()}


def predictor(texts: Texts, frames: int) -> Predict:
    """Of clips whose conditions are numbers of captions.

    As in Open-Sora a caption is dropped for the model's null caption, which is never trained, under the mask of the
    caption it stands for.
    """
    sizes = told(texts.embeds.device, frames)

    def predict(model: Any, xt: Tensor, t: Tensor, captions: Tensor, dropped: Tensor) -> Tensor:
        null = model.y_embedder.y_embedding.expand(1, 1, -1, -1)
        text = torch.where(dropped.view(-1, 1, 1, 1), null, texts.embeds[captions])
        output: Tensor = model(xt, t, text, texts.masks[captions], **sizes)
        return output

    return predict


def train_clips(run: Run, data: ClipLatents, texts: Texts, recipe: Recipe, checkpoint: Path | None = None,
                save_every: int = 2000, held_out: ClipLatents | None = None, measure_every: int = 500,
                compile_model: bool = False) -> bool:  # fmt: skip
    """Train as `loop.train` does, on noise and variance of whole clips."""
    if compile_model:
        compile_each(run.model.blocks)
    predict = predictor(texts, data.z.shape[2])
    losses = denoising(data.batch, predict, recipe, data.z.device)
    measure = None if held_out is None else lambda ema: held_out_loss(ema, predict, held_out.z, held_out.captions)
    return train(run, recipe, losses, checkpoint, save_every, measure, measure_every)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m ditfastattn.demo.train_clips", description=__doc__.split("\n\n")[0])
    p.add_argument("--stills", type=Path, required=True, help="the file that python -m ditfastattn.demo.clips wrote")
    p.add_argument("--out", type=Path, required=True, help="where the checkpoint and results go")
    p.add_argument("--start", type=Path, help="a trained pipeline of images, to begin from (the bundled demo)")
    p.add_argument("--blocks", type=int, nargs="+", default=PRESETS["long"]["blocks"], help="the blocks to take of it")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--clips", type=int, default=24_576, help="clips to train on, 131 kB each on a GPU")
    p.add_argument("--frames", type=int, default=FRAMES)
    p.add_argument("--seconds", type=float, help="training time; the rate falls to zero at its end")
    p.add_argument("--iterations", type=int, default=20_000)
    p.add_argument("--batch", type=int, default=48)
    p.add_argument("--lr", type=float, default=8e-4)
    p.add_argument("--warmup", type=int, default=200)
    p.add_argument("--ema", type=float, default=0.998)
    p.add_argument("--measure-every", type=int, default=500, help="iterations between held-out losses")
    p.add_argument("--save-every", type=int, default=2000)
    p.add_argument("--no-compile", action="store_true", help="do without torch.compile on a GPU")
    return p


def prepared(args: argparse.Namespace, vae: AutoencoderKL) -> tuple[ClipLatents, ClipLatents]:
    """Latents to train on and, of drawings that are held out, to measure on."""
    stills = Stills.load(args.stills)
    images, subjects = torch.from_numpy(stills.images).to(args.device), torch.from_numpy(stills.subjects)
    unseen = torch.from_numpy(stills.held_out)
    kept = unseen.logical_not()
    data = encode_clips(vae, images[kept.to(images.device)], subjects[kept], args.clips, args.seed, args.frames)
    few = min(64, args.clips)
    return data, encode_clips(vae, images[unseen.to(images.device)], subjects[unseen], few, args.seed + 1, args.frames)


def start_folder(args: argparse.Namespace) -> Path:
    return args.start or pipeline_path()


def start(args: argparse.Namespace, vae: AutoencoderKL) -> tuple[OpenSoraPipeline, Texts]:
    """The pipeline before training, and its captions encoded."""
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(len(tokenizer))
    trained = DiTTransformer2DModel.from_pretrained(start_folder(args) / "transformer", torch_dtype=torch.float32)
    pipe = build_pipeline(inflate(trained, args.blocks).to(args.device), vae, tokenizer, encoder)
    embeds, masks = pipe.encode_prompt(list(CAPTIONS))
    return pipe, Texts(embeds.to(args.device), masks.to(args.device))


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    vae = AutoencoderKL.from_pretrained(start_folder(args) / "vae", torch_dtype=torch.float32).to(device)
    vae.eval().requires_grad_(False)
    began = time.monotonic()
    data, unseen = prepared(args, vae)
    print(f"{len(data.z)} clips of latents {tuple(data.z.shape[1:])} in {time.monotonic() - began:.0f} s", flush=True)

    pipe, texts = start(args, vae)
    recipe = Recipe(
        args.iterations, args.batch, args.lr, args.warmup, decay=0.5, ema=args.ema, seed=args.seed, seconds=args.seconds
    )
    run, checkpoint = Run.start(pipe.transformer, recipe), args.out / "stdit2.pt"
    if checkpoint.exists():
        run.load(checkpoint)
        print(f"going on from iteration {run.iteration}", flush=True)
    compiled = on_gpu and not args.no_compile
    finished = train_clips(run, data, texts, recipe, checkpoint, args.save_every, unseen, args.measure_every, compiled)
    run.take_best()
    pipe.register_modules(transformer=run.ema)
    size = export(args.out / "pipeline", pipe)
    parameters = sum(parameter.numel() for parameter in run.ema.parameters())
    rate = run.iteration * args.batch / max(run.elapsed, 1e-9)
    report = {
        "iteration": run.iteration,
        "finished": finished,
        "seconds": round(run.elapsed, 1),
        "clips_per_second": round(rate, 1),
        "bytes": size,
        "parameters": parameters,
        "arguments": {k: v for k, v in vars(args).items() if k not in ("stills", "out", "start")},
        "curve": run.curve,
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    write_text(args.out / "training.json", json.dumps(report) + "\n")
    if run.curve:
        figures.curve(run.curve, args.out / "curve.png")
        print(f"iteration {run.iteration}, {rate:.0f} clips/s, {parameters / 1e6:.2f} M parameters, "
              f"{size / 1e6:.2f} MB, {run.curve[-1]}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
