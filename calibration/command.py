"""What the commands that make plans of a pipeline share: the schedule, where plans go, and the pipeline opened."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from calibration.errors import CalibrationError
from calibration.settings import Settings
from calibration.subjects import Subjects, choose_subjects, sampled_by
from ditfastattn.pipelines import load_pipeline, usual_schedule


def settle_schedule(options: argparse.Namespace) -> None:
    """Puts the usual sampler and number of steps where none were named."""
    options.sampler, usual = usual_schedule(options.model, options.sampler)
    options.steps = usual if options.steps is None else options.steps


def plan_paths(options: argparse.Namespace, names: Sequence[str], others: bool = False) -> list[Path]:
    """Where plans of these names go: the file of ``--output``, or into that folder, named by model and schedule.

    Args:
        others: more files than plans are written to ``--output``.

    Raises:
        CalibrationError: one file for several, two plans of one name, or a folder that cannot be written to.
    """
    output = Path(options.output)
    _check_folder(output.parent if output.suffix == ".json" else output)
    if output.suffix == ".json":
        if others or len(names) > 1:
            raise CalibrationError(f"--output {output} is one file, but several will be written: name a folder")
        return [output]
    model = Path(options.model).name.removesuffix(".pt") or "model"
    paths = [output / f"{model}-{options.sampler}{options.steps}-{name}.json" for name in names]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise CalibrationError(f"two plans would be written to one file, {path}: a value stands twice")
    return paths


def _check_folder(folder: Path) -> None:
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is no folder"
        raise CalibrationError(f"{folder} cannot be written to, for {there} {why}: name another --output")


def opened(options: argparse.Namespace, device: str, **how: Any) -> tuple[Any, Subjects, Settings]:
    """The pipeline, what its images show, and the settings of a run; ``how``: settings besides the usual ones.

    Raises:
        LoadError: no such pipeline.
        CalibrationError: subjects or settings that cannot be.
    """
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
    settings = Settings(steps=options.steps, guidance_scale=guidance, seed=options.seed, **how, **subjects.settings)
    return pipe, subjects, settings
