"""What is calibrated: a pipeline, or a bare transformer and the sampler of its user's own loop."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from calibration.errors import CalibrationError


@dataclass(frozen=True)
class Bare:
    """The two parts of a pipeline that a calibration runs."""

    transformer: nn.Module
    scheduler: Any


def with_sampler(target: Any, scheduler: Any) -> Any:
    """Something with ``transformer`` and ``scheduler``: ``target`` itself, if it is a pipeline.

    Raises:
        CalibrationError: a transformer without a sampler of diffusers, a pipeline with a second one, or neither.
    """
    if isinstance(target, nn.Module):
        lacking = [name for name in ("config", "set_timesteps", "step", "order") if not hasattr(scheduler, name)]
        if lacking:
            given = "none" if scheduler is None else f"{type(scheduler).__name__}, which has no {lacking[0]}"
            raise CalibrationError(
                f"{type(target).__name__} is calibrated over the steps of a sampler: give scheduler= one of "
                f"diffusers, such as DPMSolverMultistepScheduler(), not {given}"
            )
        return Bare(target, scheduler)
    if not hasattr(target, "transformer") or not hasattr(target, "scheduler"):
        raise CalibrationError(
            f"{type(target).__name__} has no transformer and scheduler: give a pipeline that has both, or the "
            "transformer itself and scheduler="
        )
    if scheduler is not None:
        raise CalibrationError("a pipeline brings its own scheduler: leave scheduler= out, or set pipeline.scheduler")
    return target
