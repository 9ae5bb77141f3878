"""A calibration that leaves its files: the plan, its trace and its picture."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.calibrate import Result, calibrate, package_versions
from calibration.errors import CalibrationError
from calibration.journal import Journal, partial_path, trace_path
from calibration.progress import bars
from calibration.settings import Settings
from calibration.subjects import condition_of
from calibration.target import with_sampler
from ditfastattn.condition import Condition
from ditfastattn.fingerprint import fingerprint
from ditfastattn.models import adapt
from ditfastattn.samplers import settings_of
from plans import save
from plans.figure import picture


def calibrate_to(
    path: str | os.PathLike[str],
    target: Any,
    settings: Settings,
    *,
    scheduler: Any = None,
    condition: Condition | None = None,
    resume: bool = False,
) -> Result:
    """:func:`calibration.calibrate.calibrate` with bars, into ``path`` (.json), with the trace that
    ``python -m calibration explain`` reads and the picture (.png) beside it.

    Args:
        resume: go on where an interrupted call with the same arguments stopped.

    Raises:
        CalibrationError: what ``calibrate`` raises, a path of another kind, or files there that belong to another plan.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise CalibrationError(f"a plan is a .json file, and {path} is none")
    refuse_foreign(path)
    pipe = with_sampler(target, scheduler)
    condition = condition_of(pipe, settings) if condition is None else condition
    journal = Journal(trace_path(path), _header(pipe, settings, condition), resume)
    with bars(f"threshold {settings.threshold}") as watch:
        result = calibrate(pipe, settings, journal, condition=condition, watch=watch)
    write(path, result, journal)
    return result


def refuse_foreign(path: Path) -> None:
    """Raises CalibrationError for a plan that no calibration wrote there: one without a trace, finished or not."""
    trace = trace_path(path)
    if path.exists() and not trace.exists() and not partial_path(trace).exists():
        raise CalibrationError(f"{path} was not written by a calibration: name another file (--output)")


def write(path: Path, result: Result, journal: Journal) -> None:
    """The plan at ``path``, its finished trace and its picture."""
    save(result.plan, path)
    journal.finish()
    picture(result.plan, path.with_suffix(".png"))


def _header(pipe: Any, settings: Settings, condition: Condition) -> dict[str, Any]:
    """What the decisions depend on."""
    adapter = adapt(pipe.transformer)
    order = [place.site for place in adapter.places]
    return {
        "model": adapter.spec().class_name,
        "weights": fingerprint(adapter.model),
        "sampler": {"class_name": type(pipe.scheduler).__name__, "settings": settings_of(pipe.scheduler)},
        "condition": _digest(condition),
        **({"sites": order} if len(set(order)) > 1 else {}),
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "device": adapter.device.type,
        "versions": package_versions(),
        **settings.as_json(),
    }


def _digest(condition: Condition) -> str:
    """Tells apart conditions: from every value of every tensor."""
    found = hashlib.sha256(repr((condition.latent_shape, condition.guided_channels, len(condition))).encode())

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value):
                add(f"{name}.{key}", value[key])
        elif isinstance(value, Tensor):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(f"{name} {value!r}".encode())

    add("conditional", condition.conditional)
    add("unconditional", condition.unconditional)
    return "sha256:" + found.hexdigest()
