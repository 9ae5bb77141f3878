"""Which labels a calibration runs on, by number or by name."""

from typing import Any

import numpy as np

from calibration.errors import CalibrationError


def names_of(pipe: Any) -> dict[int, str]:
    """Label -> name, for the labels a pipeline names; the first of several names."""
    found: dict[int, str] = {}
    for name, label in (getattr(pipe, "labels", None) or {}).items():
        found.setdefault(label, name)
    return found


def choose_labels(pipe: Any, text: str | None, count: int, seed: int) -> tuple[int, ...]:
    """The labels asked for, or ``count`` of them spread evenly over the classes, begun at random by ``seed``.

    Raises:
        CalibrationError: an unknown name or number, or a count below 1.
    """
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
