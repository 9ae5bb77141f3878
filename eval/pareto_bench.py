"""A model, the images that plans are judged by on it, and what is measured once for many of them."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from calibration.calibrate import empty_plan
from calibration.labels import choose_labels
from calibration.loss import DRIFT
from calibration.priced import CANDIDATES, Priced, priced
from calibration.prices import Prices
from calibration.sensitivity import Sensitivity
from calibration.settings import Settings
from calibration.subjects import condition_of
from calibration.trials import Trials
from ditfastattn.condition import FromLabels
from ditfastattn.errors import DitFastAttnError
from ditfastattn.models import adapt
from ditfastattn.pipelines import load_pipeline
from ditfastattn.sampling import label_condition
from eval.drift import UNSEEN
from eval.drift_runs import Sampled, final_latents
from plans import Method, Plan
from plans.method import PAPER

Candidate = tuple[str, str, Plan | None, int]  # method, setting, plan (None: uncompressed), steps


class Bench:
    """A model, the images it is judged by, and menus of what ours may choose from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.pipe = load_pipeline(args.model, dtype=getattr(torch, args.dtype), device=args.device)
        if not isinstance(adapt(self.pipe.transformer), FromLabels):
            raise DitFastAttnError(f"{args.model} is conditioned on prompts; this compares plans on other labels")
        self.labels = choose_labels(self.pipe, None, args.labels, args.seed)
        every = choose_labels(self.pipe, None, 10**4, args.seed)
        others = [label for label in dict.fromkeys(every) if label not in self.labels] or list(self.labels)
        self._unseen = [others[index % len(others)] for index in range(args.n)]
        self.mlp = adapt(self.pipe.transformer).mlp
        self.prices: Prices | None = None  # None: MACs
        self.slow: tuple[Method, ...] = ()  # methods that are not faster than FULL here
        self._trials: dict[int, tuple[Trials, Trials]] = {}
        self._priced: dict[tuple[int, str], Priced] = {}
        self._sensitivities: dict[int, tuple[Sensitivity, ...]] = {}

    def settings(self, steps: int, **how: Any) -> Settings:
        args = self.args
        return Settings(labels=self.labels, steps=steps, guidance_scale=args.guidance, seed=args.seed, **how)

    def sampled(self, plan: Plan | None, steps: int) -> Sampled:
        args = self.args
        return final_latents(self.pipe, plan, self._unseen, args.seed + UNSEEN, args.guidance, steps, args.batch)

    def trials(self, base: int) -> tuple[Trials, Trials]:
        """On the noise of a search, and on other noise, of the labels that are calibrated on."""
        if base not in self._trials:
            args, count = self.args, len(self.labels)
            condition = label_condition(self.pipe.transformer, self.labels)
            seen, unseen = (
                Trials(self.pipe, condition, args.guidance, base, args.seed, range(first, first + count))
                for first in (0, count)
            )
            self._trials[base] = seen, unseen
        return self._trials[base]

    def priced(self, steps: int, kind: str) -> Priced:
        """``kind``: "attention" chooses among the paper's methods, "all" also among forecasts, and for MLPs."""
        if (steps, kind) not in self._priced:
            begun = time.monotonic()
            paper = tuple(method for method in PAPER if method is not Method.FULL)
            candidates = tuple(m for m in (paper if kind == "attention" else CANDIDATES) if m not in self.slow)
            settings = self.settings(steps, threshold=1.0, loss=DRIFT)
            known = self._sensitivities.get(steps, ())
            found = priced(self.pipe, settings, kind == "all", candidates, known, prices=self.prices)
            self._priced[steps, kind], self._sensitivities[steps] = found, found.sensitivities
            seconds = time.monotonic() - begun
            print(f"errors of {steps} steps, {kind}: {found.table.block_runs} block runs, {seconds:.0f} s", flush=True)
        return self._priced[steps, kind]


def full_plan(bench: Bench, steps: int) -> Plan:
    """All FULL."""
    settings = bench.settings(steps, threshold=1.0)
    shape = condition_of(bench.pipe, settings).latent_shape
    return empty_plan(adapt(bench.pipe.transformer), bench.pipe.scheduler, settings, shape)
