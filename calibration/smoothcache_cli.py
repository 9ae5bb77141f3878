"""``python -m calibration smoothcache``: SmoothCache's schedule for a model, as a plan."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from calibration.arguments import Parser, add_parts, add_video, parse_negative, parse_seed
from calibration.errors import CalibrationError
from calibration.settings import Settings
from calibration.smoothcache import LONGEST, smoothcache_errors
from calibration.subjects import choose_subjects, sampled_by
from ditfastattn.pipelines import load_pipeline, usual_schedule
from ditfastattn.ranks import ALONE
from ditfastattn.samplers import SAMPLERS
from plans import save
from plans.make import smoothcache
from plans.render import costline

EXAMPLES = """examples:
  python -m calibration smoothcache --threshold 0.1
  python -m calibration smoothcache --model demo-long --threshold 0.05 0.1 0.2 --output runs
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m calibration smoothcache",
        description="Measures, in one uncompressed run, how far the outputs of attention and of MLPs change over a few "
        "steps, and saves the plan that reuses each kind while its error stays within a threshold (SmoothCache, arXiv "
        "2411.10510).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--threshold", nargs="+", type=float, required=True, metavar="A", help="relative L1 error; one or more")
    add_parts(p)
    add("--longest", type=int, default=LONGEST, metavar="K", help="steps over which anything is reused at most (3)")
    add("--steps", type=int, help="sampler steps (default: as python -m calibration)")
    add("--sampler", choices=list(SAMPLERS), help="default: dpm (DPM-Solver++ 2M), of Open-Sora iddpm")
    add("--guidance", type=float, metavar="S", help="guidance scale; 1 is none (default: as python -m calibration)")
    add("--n-calib", type=int, metavar="N", help="images to measure on (default: as python -m calibration)")
    add("--labels", help="the labels themselves, by number or name, with commas (default: spread over all)")
    add("--prompts", type=Path, metavar="FILE", help="prompts, one a line (default: some of ours)")
    add("--negative-prompt", type=parse_negative, metavar="TEXT", help="what guidance leads away from")
    add_video(p)
    add("--seed", type=parse_seed, default=0, help="of the noise, and of the choice of labels (default: 0)")
    add("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    add("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="default: float32")
    add("--output", default="calibrated", help="folder, or FILE.json for a single threshold (default: calibrated)")
    return p


def main(argv: Sequence[str]) -> int:
    """Writes a plan for each threshold.

    Raises:
        CalibrationError: options that cannot be.
    """
    options = parser().parse_args(argv)
    options.sampler, usual_steps = usual_schedule(options.model, options.sampler)
    steps = usual_steps if options.steps is None else options.steps
    paths = [_path(options, steps, value) for value in options.threshold]
    for value in options.threshold:
        if not 0 <= value < float("inf"):
            raise CalibrationError(f"a threshold is a relative error from 0, got {value:g}")
    if options.longest < 1:
        raise CalibrationError(f"--longest {options.longest} reuses nothing; give at least 1")
    device = ALONE.device(options.device)
    pipe = load_pipeline(
        options.model,
        sampler=options.sampler,
        dtype=getattr(torch, options.dtype),
        device=device,
        vae=options.vae,
        text_encoder=options.text_encoder,
    )
    subjects = choose_subjects(pipe, options, device)
    guidance = sampled_by(pipe.transformer).usual_guidance if options.guidance is None else options.guidance
    settings = Settings(steps=steps, guidance_scale=guidance, seed=options.seed, **subjects.settings)
    plan, errors = smoothcache_errors(pipe, settings, options.longest)
    for site, rows in errors.items():
        adjacent = [error for error in rows[0] if error == error]
        print(f"{site}: error over one step {min(adjacent):.3f} to {max(adjacent):.3f}" if adjacent else site)
    for value, path in zip(options.threshold, paths, strict=True):
        made = smoothcache(plan, errors, value)
        save(made, path)
        print(f"wrote {path}\n{costline(made)}")
    return 0


def _path(options: argparse.Namespace, steps: int, value: float) -> Path:
    output = Path(options.output)
    if output.suffix == ".json":
        if len(options.threshold) > 1:
            raise CalibrationError(f"--output {output} is one file, but there are several thresholds: name a folder")
        return output
    model = Path(options.model).name.removesuffix(".pt") or "model"
    return output / f"{model}-{options.sampler}{steps}-smoothcache-{value:g}.json"
