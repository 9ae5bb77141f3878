"""Which labels a calibration runs on, by number or by name."""

from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from ditfastattn.models import adapt


def names_of(pipe: Any) -> dict[int, str]:
    """Label -> name, for the labels a pipeline names; the first of several names."""
    found: dict[int, str] = {}
    for name, label in (getattr(pipe, "labels", None) or {}).items():
        found.setdefault(label, name)
    return found


def check_labelled(transformer: Any) -> None:
    """Raises CalibrationError for a model whose condition is not a label, ApplyError for an unknown one."""
    conditioned_on = adapt(transformer).conditioned_on
    if not hasattr(transformer, "config") or conditioned_on is None:
        raise CalibrationError(
            f"{type(transformer).__name__} is not one of diffusers' classes, which calibration runs: for the original "
            "DiT give --model its .pt checkpoint, whose plans fit the original too"
        )
    if conditioned_on != "labels":
        raise CalibrationError(
            f"{type(transformer).__name__} is conditioned on prompts, and this version calibrates on labels only: "
            "calibration on prompts comes later; plans made by hand or elsewhere can be applied to it"
        )


def choose_labels(pipe: Any, text: str | None, count: int, seed: int) -> tuple[int, ...]:
    """The labels asked for, or ``count`` of them spread evenly over the classes, begun at random by ``seed``.

    Raises:
        CalibrationError: an unknown name or number, a count below 1, or a model that is not conditioned on labels.
    """
    check_labelled(pipe.transformer)
    classes = pipe.transformer.config.num_embeds_ada_norm
    named = names_of(pipe)
    if text is not None:
        by_name = {name.casefold(): label for name, label in (getattr(pipe, "labels", None) or {}).items()}
        known = set(named) or set(range(classes))
        return tuple(_label(part.strip(), by_name, known) for part in text.split(",") if part.strip())
    if count < 1:
        raise CalibrationError(f"--n-calib must be at least 1, got {count}")
    pool = sorted(named) or list(range(classes))
    start = int(np.random.default_rng(seed).integers(len(pool)))
    return tuple(pool[(start + i * len(pool) // count) % len(pool)] for i in range(count))


def _label(text: str, by_name: dict[str, int], classes: set[int]) -> int:
    if text.lstrip("-").isdecimal():
        if int(text) not in classes:
            raise CalibrationError(
                f"label {text} is none of the model's {len(classes)} classes ({min(classes)}..{max(classes)})"
            )
        return int(text)
    if text.casefold() not in by_name:
        known = ", ".join(sorted(by_name)[:8]) or "none"
        raise CalibrationError(f"the model has no class named {text!r} (it names: {known}, ...)")
    return by_name[text.casefold()]
