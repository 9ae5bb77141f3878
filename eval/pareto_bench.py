"""A model, the images that plans are judged by on it, and what is measured once for many of them."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from calibration.calibrate import empty_plan
from calibration.labels import choose_labels
from calibration.loss import DRIFT
from calibration.planner import UNSEEN as UNSEEN_BATCHES
from calibration.priced import CANDIDATES, Priced, priced
from calibration.prices import Prices
from calibration.recorded import Recording
from calibration.settings import Settings
from calibration.skips import Skips
from calibration.spacing import Spacing
from calibration.subjects import condition_of
from calibration.trials import Trials
from ditfastattn.condition import FromLabels
from ditfastattn.errors import DitFastAttnError
from ditfastattn.models import adapt
from ditfastattn.pipelines import load_pipeline
from ditfastattn.samplers import inference_steps
from ditfastattn.sampling import label_condition
from eval.drift import UNSEEN
from eval.drift_runs import Sampled, final_latents, latents_by
from eval.pareto_cache_dit import DualBlockCache
from eval.sample_batches import Labels, pool_of
from eval.sample_settings import check_steps
from plans import Method, Plan
from plans.macs import PlanMacs, plan_macs, total_macs

if TYPE_CHECKING:
    from eval.pareto_time import Stopwatch

Way = Plan | DualBlockCache | None  # None: uncompressed
Candidate = tuple[str, str, Way, int]  # method, setting, way of sampling, steps


class Measured(NamedTuple):
    """What was sampled, and the shares of the MACs of attention and MLPs, and of attention, that it took of a full run
    of as many steps."""

    sampled: Sampled
    macs: float
    attention: float


class Bench:
    """A model, the images it is judged by, and menus of what ours may choose from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.pipe = load_pipeline(args.model, dtype=getattr(torch, args.dtype), device=args.device)
        if not isinstance(adapt(self.pipe.transformer), FromLabels):
            raise DitFastAttnError(f"{args.model} is conditioned on prompts; this compares plans on other labels")
        for steps in args.base_steps:
            check_steps(self.pipe, steps)
        self.labels = choose_labels(self.pipe, None, args.labels, args.seed)
        every = choose_labels(self.pipe, None, 10**4, args.seed)
        others = [label for label in dict.fromkeys(every) if label not in self.labels] or list(self.labels)
        self.unseen = [others[index % len(others)] for index in range(args.n)]
        self.mlp = adapt(self.pipe.transformer).mlp
        self.prices: Prices | None = None  # None: MACs
        self.slow: tuple[Method, ...] = ()  # methods that are not faster than FULL here
        self.stopwatch: Stopwatch | None = None  # of the base that is measured now
        self._trials: dict[int, tuple[Trials, Trials]] = {}
        self._priced: dict[int, Priced] = {}
        self._steps: dict[int, tuple[Spacing, Skips]] = {}

    def settings(self, steps: int, **how: Any) -> Settings:
        args = self.args
        return Settings(labels=self.labels, steps=steps, guidance_scale=args.guidance, seed=args.seed, **how)

    def sampled(self, way: Way, steps: int, count: int | None = None) -> Measured:
        """The images that plans are judged by, or the first so many of them."""
        return self.drawn(way, steps, self.unseen[:count], self.args.seed + UNSEEN)

    def drawn(self, way: Way, steps: int, labels: Sequence[int], seed: int) -> Measured:
        """One image a label, image i of noise (seed, i)."""
        args, pipe = self.args, self.pipe
        if isinstance(way, DualBlockCache):
            running = way.on(pipe.transformer, steps)
            run = inference_steps(pipe.scheduler, steps)
            found = latents_by(running.transformer, pipe, running.one_run, labels, seed, args.guidance, run, args.batch)
            return Measured(found, running.share(steps), running.share(steps))
        found = final_latents(pipe, way, labels, seed, args.guidance, steps, args.batch)
        if way is None:
            return Measured(found, 1.0, 1.0)
        return Measured(found, share(total_macs(way)), share(plan_macs(way)))

    def in_dtype(self, dtype: torch.dtype) -> Bench:
        """The same, with a transformer of its own in another dtype."""
        other = copy.copy(self)
        other.pipe = copied(self.pipe, dtype)
        return other

    def random_labels(self, count: int) -> list[int]:
        """Those of the images that ``python -m eval sample`` draws."""
        labels = Labels(pool_of(self.pipe), "random", self.args.seed)
        return [labels[index] for index in range(count)]

    def trials(self, base: int) -> tuple[Trials, Trials]:
        """On the noise of a search, and on other noise, of the labels that are calibrated on."""
        if base not in self._trials:
            args, count = self.args, len(self.labels)
            condition, run = label_condition(self.pipe.transformer, self.labels), full_plan(self, base).sampler
            seen, unseen = (
                Trials(self.pipe, condition, args.guidance, run, args.seed, range(first, first + batches * count))
                for first, batches in ((0, 1), (count, UNSEEN_BATCHES))
            )
            self._trials[base] = seen, unseen
        return self._trials[base]

    def steps(self, base: int) -> tuple[Spacing, Skips]:
        """What chooses timesteps from the base's, and the steps that call the model."""
        if base not in self._steps:
            args, condition = self.args, label_condition(self.pipe.transformer, self.labels)
            run = full_plan(self, base).sampler
            recording = Recording(self.pipe, condition, args.guidance, run, args.seed)
            self._steps[base] = Spacing(recording), Skips(recording)
        return self._steps[base]

    def priced(self, base: int) -> Priced:
        """Errors of all cells over the base's steps."""
        if base not in self._priced:
            begun = time.monotonic()
            candidates = tuple(method for method in CANDIDATES if method not in self.slow)
            settings = self.settings(base, loss=DRIFT)
            found = self._priced[base] = priced(self.pipe, settings, True, candidates, prices=self.prices)
            seconds = time.monotonic() - begun
            print(f"errors of {base} steps: {found.table.block_runs} block runs, {seconds:.0f} s", flush=True)
        return self._priced[base]


def share(macs: PlanMacs) -> float:
    """Of a full run, what a plan computes: storing residuals included, as prices do (``calibration.prices``)."""
    return (macs.total + macs.residual_store) / macs.full


def copied(pipe: Any, dtype: torch.dtype) -> Any:
    """A pipeline with a transformer and a sampler of its own, the VAE shared."""
    other = copy.copy(pipe)
    other.transformer = copy.deepcopy(pipe.transformer).to(dtype)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return other


def full_plan(bench: Bench, steps: int) -> Plan:
    """All FULL."""
    settings = bench.settings(steps)
    shape = condition_of(bench.pipe, settings).latent_shape
    return empty_plan(adapt(bench.pipe.transformer), bench.pipe.scheduler, settings, shape)
