"""A menu of plans for a pipeline: sensitivities of the steps, and the errors of all cells from one more run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calibration.bench import bench
from calibration.calibrate import empty_plan
from calibration.error_table import ErrorTable, measure
from calibration.fast import LONGEST, Menu
from calibration.sensitivity import Sensitivity
from calibration.settings import Settings
from calibration.subjects import condition_of
from calibration.work import Watch, Work
from ditfastattn.models import adapt
from ditfastattn.ranks import ALONE
from plans import Method

RESPONSES = 5  # one step in so many has its response measured,
PROJECTIONS = 4  # by so many random ones
CANDIDATES = tuple(method for method in Method if method is not Method.FULL)


@dataclass(frozen=True)
class Priced:
    """A menu, and what it was made from."""

    menu: Menu
    table: ErrorTable
    sensitivities: tuple[Sensitivity, ...]


@torch.no_grad()
def priced(
    pipe: Any,
    settings: Settings,
    mlps: bool,
    candidates: tuple[Method, ...] = CANDIDATES,
    known: Sequence[Sensitivity] = (),
    watch: Watch | None = None,
) -> Priced:
    """The menu of a pipeline on the settings' images.

    Args:
        known: sensitivities of the same settings, measured before.
        mlps: choose for MLPs as well.
        candidates: methods besides FULL, forecasts among them; without guidance those that share it are left out.

    Raises:
        CalibrationError: an output that is not finite.
    """
    adapter = adapt(pipe.transformer)
    condition = condition_of(pipe, settings)
    plan = empty_plan(adapter, pipe.scheduler, settings, condition.latent_shape)
    images = range(settings.images)
    work = Work(pipe, adapter, plan, settings, condition, images, None, ALONE, watch or Watch())
    work.measure(known)
    usable = [method for method in candidates if settings.guided or not method.shares_guidance]
    with bench(adapter, plan, work.call, settings, ALONE) as probe:
        table = measure(
            probe,
            work.run.fork(),
            plan.sampler.timesteps,
            usable,
            longest=LONGEST,
            measured=max(2, plan.steps // RESPONSES),
            mlps=mlps,
            projections=PROJECTIONS,
            seed=settings.seed,
        )
    chosen = plan.with_mlp(adapter.mlp) if mlps else plan
    weights = [sensitivity.value for sensitivity in work.sensitivities]
    return Priced(Menu(chosen, table, weights, usable), table, tuple(work.sensitivities))
