"""What the images of a calibration show: labels or prompts, as settings record them and as the model is told."""

import argparse
import gc
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch

from calibration.errors import CalibrationError
from calibration.labels import choose_labels, names_of
from calibration.prompts import choose_prompts
from calibration.settings import Settings
from ditfastattn.condition import Condition, FromLabels, FromPrompts
from ditfastattn.models import adapt
from ditfastattn.models.native_dit import NativeDiT


@dataclass(frozen=True)
class Subjects:
    """``settings``: the fields of Settings that record them; ``names``: of the images, for people."""

    settings: dict[str, Any]
    names: tuple[str, ...]

    def __str__(self) -> str:
        if "prompts" not in self.settings:
            return f"{_counted(len(self.names), 'label')}: {', '.join(self.names)}"
        negative, video = self.settings["negative_prompt"], self.settings["video"]
        away = f", away from {negative!r}" if negative else ""
        size = f", videos of {video}" if video else ""
        return f"{_counted(len(self.names), 'prompt')}{away}{size}:\n" + "\n".join(
            f"  {shorten(name, 100)}" for name in self.names
        )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def sampled_by(transformer: Any) -> FromLabels | FromPrompts:
    """The adapter that makes its conditions.

    Raises:
        CalibrationError: a model whose call nobody here knows.
        ApplyError: an unknown one.
    """
    adapter = adapt(transformer)
    if isinstance(adapter, FromLabels | FromPrompts):
        return adapter
    if isinstance(adapter, NativeDiT):
        raise CalibrationError(
            "the original DiT module is sampled by its own program, and calibration runs diffusers' class: give "
            "--model its .pt checkpoint, whose plans fit the original too"
        )
    raise CalibrationError(
        f"what the forward of {type(transformer).__name__} is called with for a label or a prompt is known to nobody "
        "here: give calibrate() condition=ditfastattn.Condition(conditional, unconditional, latent_shape), as the "
        "README's part on your own module shows, or make its adapter a FromLabels or a FromPrompts (CONTRIBUTING.md)"
    )


def choose_subjects(pipe: Any, options: argparse.Namespace, device: str) -> Subjects:
    """Those asked for on the command line, or a choice that suits the model.

    Raises:
        CalibrationError: labels for a model of prompts or the other way round, or ones that cannot be.
    """
    name = type(pipe.transformer).__name__
    adapter = sampled_by(pipe.transformer)
    if isinstance(adapter, FromPrompts):
        if options.labels is not None:
            raise CalibrationError(f"--labels goes with classes, but {name} is conditioned on prompts: give --prompts")
        prompts = choose_prompts(options.prompts, options.n_calib, adapter.usual_prompts)
        text = {"negative_prompt": options.negative_prompt or "", "video": options.video}
        adapter.check_subject(pipe, *text.values())
        return Subjects({"prompts": prompts, **text, "video": options.video or adapter.usual_video}, prompts)
    refuse_text(options, name)
    count = options.n_calib if options.n_calib is not None else (4 if device == "cpu" else 8)
    labels = choose_labels(pipe, options.labels, count, options.seed)
    names = names_of(pipe)
    return Subjects({"labels": labels}, tuple(names.get(label, str(label)) for label in labels))


def refuse_text(options: argparse.Namespace, name: str) -> None:
    """Raises CalibrationError for what was asked of a model of classes, and only one of prompts can do."""
    for option, value in (
        ("--prompts", options.prompts),
        ("--negative-prompt", options.negative_prompt),
        ("--video", options.video),
    ):
        if value is not None:
            raise CalibrationError(f"{option} goes with text, but {name} is conditioned on classes: leave it out")


def condition_of(pipe: Any, settings: Settings) -> Condition:
    """What the settings' labels or prompts are to the model; prompts are encoded.

    Raises:
        CalibrationError: labels for a model of prompts or the other way round, or labels it does not know.
        LoadError: the pipeline cannot encode prompts.
    """
    adapter = sampled_by(pipe.transformer)
    name = type(pipe.transformer).__name__
    if not settings.images:
        raise CalibrationError(
            f"calibration needs at least one label or prompt for {name}, or a condition= made before"
        )
    if isinstance(adapter, FromPrompts):
        if not settings.prompts:
            raise CalibrationError(f"{name} is conditioned on prompts: calibrate it on prompts, not labels")
        return adapter.condition(pipe, settings.prompts, settings.negative_prompt, settings.video)
    if not settings.labels:
        raise CalibrationError(f"{name} is conditioned on classes: calibrate it on labels, not prompts")
    classes = pipe.transformer.config.num_embeds_ada_norm
    foreign = [label for label in settings.labels if not 0 <= label < classes]
    if foreign:
        raise CalibrationError(f"labels {foreign} are not among the model's classes 0..{classes - 1}")
    return adapter.condition(settings.labels)


def release_encoders(pipe: Any) -> None:
    """Frees what only encoding prompts needs, the larger part of a pipeline's memory."""
    adapter = sampled_by(pipe.transformer)
    if isinstance(adapter, FromPrompts):
        for name in adapter.encoders:
            setattr(pipe, name, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
