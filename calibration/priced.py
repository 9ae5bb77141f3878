"""A menu of plans for a pipeline: sensitivities of the steps, and the errors of all cells from one more run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from calibration.calibrate import alone
from calibration.error_table import ErrorTable
from calibration.errors import CalibrationError
from calibration.fast import LONGEST, Menu
from calibration.prices import Macs, Prices
from calibration.refresh import Rhythms
from calibration.sensitivity import Sensitivity
from calibration.settings import Settings
from calibration.target import with_sampler
from calibration.work import Watch
from ditfastattn.condition import Condition
from ditfastattn.models import adapt
from plans import Method, Plan
from plans.method import PAPER

CANDIDATES = tuple(method for method in Method if method is not Method.FULL)


@dataclass(frozen=True)
class Priced:
    """What plans can be chosen by."""

    plan: Plan  # all FULL, with the site ``mlp`` if MLPs were measured
    bare: Plan  # without it
    table: ErrorTable
    sensitivities: tuple[Sensitivity, ...]
    candidates: tuple[Method, ...]
    prices: Prices

    @property
    def weights(self) -> list[float]:
        return [sensitivity.value for sensitivity in self.sensitivities]

    @cached_property
    def menu(self) -> Menu:
        """Every layer by itself."""
        return Menu(self.plan, self.table, self.weights, self.candidates, LONGEST, self.prices)

    @cached_property
    def attention(self) -> Menu:
        """Attention alone, by the paper's methods; MLPs are left as they are."""
        paper = [method for method in self.candidates if method in PAPER]
        return Menu(self.bare, self.table, self.weights, paper, LONGEST, self.prices)

    @cached_property
    def rhythms(self) -> Rhythms:
        """All layers together."""
        return Rhythms(self.plan, self.table, self.weights, self.candidates, LONGEST, self.prices)


@torch.no_grad()
def priced(
    target: Any,
    settings: Settings,
    mlps: bool,
    candidates: tuple[Method, ...] = CANDIDATES,
    known: Sequence[Sensitivity] = (),
    watch: Watch | None = None,
    prices: Prices | None = None,
    scheduler: Any = None,
    condition: Condition | None = None,
) -> Priced:
    """A pipeline or a transformer measured on the settings' images.

    Args:
        target, scheduler, condition: as in :func:`calibration.calibrate.calibrate`.
        known: sensitivities of the same settings, measured before.
        mlps: choose for MLPs as well.
        candidates: methods besides FULL, forecasts among them; without guidance those that share it are left out.
        prices: what cells cost; None counts MACs.

    Raises:
        CalibrationError: an output that is not finite, or MLPs of a model in which plans cannot reach them.
    """
    pipe = with_sampler(target, scheduler)
    adapter = adapt(pipe.transformer)
    if mlps and adapter.mlp is None:
        raise CalibrationError(f"plans cannot reach the MLPs of {type(adapter.model).__name__}: leave them out")
    work = alone(pipe, settings, condition, watch)
    work.measure(known)
    usable = [method for method in candidates if settings.guided or not method.shares_guidance]
    table = work.errors(usable, mlps)
    plan = work.plan
    chosen = plan.with_mlp(adapter.mlp) if mlps else plan
    return Priced(chosen, plan, table, tuple(work.sensitivities), tuple(usable), prices or Macs())
