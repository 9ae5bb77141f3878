"""The options that say what is sampled and how; nothing large is imported before one needs it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.errors import CalibrationError
from ditfastattn.schedules import USUAL_STEPS

if TYPE_CHECKING:
    from ditfastattn.condition import VideoSize


def add_run(parser: argparse.ArgumentParser) -> None:
    """What is sampled and how, and where plans of it go."""
    add = parser.add_argument
    add_parts(parser)
    add("--steps", type=int, help="sampler steps (default: 50; ddpm and iddpm 250, Open-Sora's iddpm 200, heun 25)")
    add("--sampler", choices=list(USUAL_STEPS), help="default: dpm (DPM-Solver++ 2M), of Open-Sora iddpm")
    add("--guidance", type=float, metavar="S", help="guidance scale; 1 is none (default: 4; with prompts 4.5, Latte "
        "7.5, Open-Sora 7)")  # fmt: skip
    add("--n-calib", type=int, metavar="N", help="images to calibrate on (default: 4 labels on a CPU, 8 on a GPU, 6 "
        "prompts of ours, of Open-Sora 4, all of --prompts)")  # fmt: skip
    add("--labels", help="the labels themselves, by number or name, with commas (default: spread over all)")
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts, one a line (default: the first of a varied dozen of ours)",
    )
    add(
        "--negative-prompt",
        type=parse_negative,
        metavar="TEXT",
        help="what guidance leads away from (default: the empty prompt)",
    )
    add_video(parser)
    add("--seed", type=parse_seed, default=0, help="of the noise, and of the choice of labels (default: 0)")
    add("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    add("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="default: float32")
    add("--output", default="calibrated", help="folder, or FILE.json for a single threshold (default: calibrated)")


def add_parts(parser: argparse.ArgumentParser) -> None:
    """The options that say which model, and where the parts are that its checkpoint lacks."""
    add = parser.add_argument
    add("--model", default="demo", help='"demo", "demo-long", "opensora", a folder, a hub id, or a .pt of '
        "facebookresearch/DiT (default: demo)")  # fmt: skip
    add("--vae", help="folder or hub id of the VAE, for a .pt checkpoint or one of Open-Sora")
    add("--text-encoder", metavar="T5", help="folder or hub id of T5 and its tokenizer, for a checkpoint of Open-Sora")


def add_video(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--video",
        type=parse_video,
        metavar="TxHxW",
        help="frames, height and width in pixels, of Open-Sora, whose videos may be of any size (default: 16x240x426)",
    )


def parse_video(text: str) -> VideoSize:
    from ditfastattn.condition import VideoSize  # with torch

    try:
        return VideoSize.parse(text)
    except ValueError as error:
        raise CalibrationError(f"--video: {error}") from None


def parse_seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise CalibrationError(f"the seed must be a whole number from 0, got {text}")
    return int(text)


def parse_negative(text: str) -> str:
    from calibration.prompts import clean  # with torch

    return clean(text, "--negative-prompt")
