"""What a pipeline's plans are searched with: what they cost, what they do to its images, and errors cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from calibration.calibrate import empty_plan
from calibration.errors import CalibrationError
from calibration.pool import pool
from calibration.priced import CANDIDATES, Priced, priced
from calibration.prices import Prices
from calibration.recorded import Recording
from calibration.settings import Settings
from calibration.skips import Skips
from calibration.spacing import Spacing
from calibration.speedup import Front, within
from calibration.trials import Outcome, Trials
from calibration.work import Watch
from ditfastattn.condition import Condition
from ditfastattn.models import adapt
from plans import Method, Plan

UNSEEN = 3  # batches of other noise


@dataclass
class Planner:
    """Finds plans of a pipeline within budgets of cost.

    Args:
        settings: of the uncompressed run that plans are compared with, with the loss drift.
        condition: of the settings' images; a search is verified on :data:`UNSEEN` times as many of other noise.
        slow: methods that are not faster than FULL, which no plan takes.
        evaluations: runs that a search spends on improving the best candidates.
    """

    pipe: Any
    settings: Settings
    condition: Condition
    prices: Prices
    slow: tuple[Method, ...] = ()
    evaluations: int = 40

    def __post_init__(self) -> None:
        self._errors: Priced | None = None
        self._tried = False  # to measure them
        settings, count = self.settings, self.settings.images
        if len(self.condition) != count:
            raise CalibrationError(f"the condition is of {len(self.condition)} images, the settings of {count}")
        full = self.full.sampler
        recording = Recording(self.pipe, self.condition, settings.guidance_scale, full, settings.seed)
        self.spacing, self.skips = Spacing(recording), Skips(recording)
        self.seen, self.unseen = (
            Trials(
                self.pipe,
                self.condition,
                settings.guidance_scale,
                full,
                settings.seed,
                range(first, first + batches * count),
                settings.kernel,
            )
            for first, batches in ((0, 1), (count, UNSEEN))
        )

    @property
    def full(self) -> Plan:
        """All steps, nothing compressed."""
        return self.plan(self.settings.steps)

    def plan(self, steps: int) -> Plan:
        """All FULL over so many model calls, MLPs included."""
        adapter = adapt(self.pipe.transformer)
        settings = replace(self.settings, steps=steps)
        return empty_plan(adapter, self.pipe.scheduler, settings, self.condition.latent_shape).with_mlp(adapter.mlp)

    def within(
        self,
        budget: float,
        on_trial: Callable[[str, Outcome], None] | None = None,
        on_more: Callable[[int], None] | None = None,
    ) -> Front:
        """The best that is found within a budget, in the unit of the prices; both are told as by `speedup.within`."""
        errors = self.errors()
        base, own = self.settings.steps, self.spacing.chosen
        candidates = list(pool(self.plan, base, budget, self.prices, self.slow, errors, own, self.skips))
        return within(
            budget,
            candidates,
            self.prices,
            self.seen,
            self.unseen,
            self.evaluations,
            self.settings.seed,
            self.slow,
            on_trial,
            on_more,
        )

    def errors(self, watch: Watch | None = None) -> Priced | None:
        """Of all cells, measured when first asked for; None where there is no memory for it: a backward pass is made,
        and many outputs are kept."""
        if not self._tried:
            self._tried = True
            candidates = tuple(method for method in CANDIDATES if method not in self.slow)
            try:
                self._errors = priced(
                    self.pipe,
                    self.settings,
                    mlps=True,
                    candidates=candidates,
                    watch=watch,
                    prices=self.prices,
                    condition=self.condition,
                )
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                print("no memory to measure the errors of cells: plans that are chosen by them are left out; calibrate "
                      "on fewer images (--n-calib) to have them", flush=True)  # fmt: skip
        return self._errors
