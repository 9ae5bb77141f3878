"""``python -m eval demo-clips``: what plans of a trained Open-Sora in small save and cost, at five thresholds.

Calibrates both sites on some captions, samples others from other noise with each plan and without, and compares. The
model comes from ``python -m ditfastattn.demo.train_clips``.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from calibration.calibrate import calibrate
from calibration.drift import Drift, Images, drift, sample
from calibration.memory import keep_freed_memory
from calibration.settings import Settings
from calibration.subjects import condition_of
from ditfastattn.condition import VideoSize
from ditfastattn.demo.clips import MOTIONS, SIZE, SUBJECTS, caption
from ditfastattn.pipelines import load_pipeline
from ditfastattn.ranks import ALONE
from eval.arguments.demo_clips import parser
from eval.clips_picture import plot, strip
from eval.record import command_line, device_name, record
from plans import Plan, save
from plans.files import write_text
from plans.macs import plan_macs, shares, site_macs

SHOWN = 3  # videos in the picture


def captions(count: int, shift: int) -> tuple[str, ...]:
    """``count`` captions, spread over the subjects, motions in turn: those of two shifts below 8 are never the same.

    Raises:
        ValueError: more than there are subjects.
    """
    if not 1 <= count <= len(SUBJECTS):
        raise ValueError(f"one caption a subject: give from 1 to {len(SUBJECTS)}, not {count}")
    subjects = [i * len(SUBJECTS) // count for i in range(count)]
    return tuple(caption(subject, (subject + shift) % len(MOTIONS)) for subject in subjects)


def row(threshold: float, plan: Plan, seconds: float, found: Drift) -> dict[str, Any]:
    """A row of the result: percents of full attention, projections counted, and the distance to the full videos."""
    macs = plan_macs(plan)
    return {
        "threshold": threshold,
        "attention_macs": round(macs.percent, 2),
        "residual_store": round(macs.store_percent, 2),
        "sites": {site: round(site_macs(plan, site).percent, 2) for site in plan.sites},
        "latent_rel_l2": round(found.latent_rel_l2, 5),
        "psnr": round(found.psnr, 2) if math.isfinite(found.psnr) else None,
        "ssim": round(found.ssim, 5),
        "shares": {
            site: {str(method): round(share, 1) for method, share in shares(plan, (site,)).items()}
            for site in plan.sites
        },
        "calibration_seconds": round(seconds, 1),
    }


def measure(pipe: Any, args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Images, Images]]:
    """A row for each threshold, with its videos and the full ones."""
    seen, unseen = captions(args.n_calib, 0), captions(args.n, 3)
    video = VideoSize(args.frames, SIZE, SIZE)
    base = {"steps": args.steps, "guidance_scale": args.guidance, "seed": args.seed, "kernel": args.kernel}

    def settings(threshold: float, prompts: tuple[str, ...]) -> Settings:
        return Settings(threshold=threshold, prompts=prompts, video=video, **base)

    condition, other = (condition_of(pipe, settings(1.0, prompts)) for prompts in (seen, unseen))
    full: Images | None = None
    for threshold in args.threshold:
        began = time.monotonic()
        plan = calibrate(pipe, settings(threshold, seen), condition=condition).plan
        seconds = time.monotonic() - began

        def draw(compressed: bool, plan: Plan = plan) -> Images:
            return sample(pipe, plan, other, args.seed, args.n_calib, args.kernel, compressed)

        if full is None:
            full = draw(False)
        compressed = draw(True)
        if args.plans is not None:
            save(plan, args.plans / f"{args.name}-{args.sampler}{args.steps}-{threshold:g}.json")
        yield row(threshold, plan, seconds, drift(full, compressed)), compressed, full


def describe(found: dict[str, Any]) -> str:
    sites = ", ".join(f"{site} {percent:.1f} %" for site, percent in found["sites"].items())
    psnr = "equal" if found["psnr"] is None else f"{found['psnr']:.1f} dB"
    return (
        f"threshold {found['threshold']:g}: attention MACs {found['attention_macs']:.1f} % ({sites}), latents rel. L2 "
        f"{found['latent_rel_l2']:.4f}, PSNR {psnr}, calibrated in {found['calibration_seconds']:.0f} s"
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.device = ALONE.device(args.device)
    keep_freed_memory()
    # float32: rounding plays no part in the drift.
    pipe = load_pipeline(args.model, sampler=args.sampler, device=args.device)
    rows: list[dict[str, Any]] = []
    videos: list[Images] = []
    for found, compressed, full in measure(pipe, args):
        rows.append(found)
        videos = [*(videos or [full]), compressed]
        print(describe(found), flush=True)
        write(pipe, args, argv, rows, videos)  # each time: a run cut short leaves what it has


def write(
    pipe: Any, args: argparse.Namespace, argv: Sequence[str] | None, rows: list[dict[str, Any]], videos: list[Images]
) -> None:
    """The result so far and its pictures; of the videos the full ones are the first."""
    command = command_line("demo-clips", argv, ("--out", "--model", "--plans"))
    report = {
        "what": "A small STDiT2 trained on clips of moving emoji. Attention MACs in percent of full attention, "
        "projections counted; distances to the uncompressed videos on captions and noise not calibrated on.",
        "rows": rows,
        "sampler": args.sampler,
        "steps": args.steps,
        "guidance": args.guidance,
        "video": [args.frames, SIZE, SIZE],
        "calibrated_on": captions(args.n_calib, 0),
        "compared_on": captions(args.n, 3),
        "parameters": sum(parameter.numel() for parameter in pipe.transformer.parameters()),
        "kernel": args.kernel,
        **record(command, device_name(args.device), "float32"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / f"{args.name}.json", json.dumps(report, indent=1) + "\n")
    names = ["full", *(f"{r['threshold']:g}: {r['attention_macs']:.0f} %" for r in rows)]
    strip(args.out / f"{args.name}.png", names, [images.pixels for images in videos], SHOWN)
    plot(args.out / f"{args.name}_curve.png", rows)
