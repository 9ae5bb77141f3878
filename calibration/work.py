"""One calibration at work: sensitivities, searches and verification on one pipeline, by the ranks together."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from torch import Tensor

import ditfastattn
from calibration.algorithm import Decision, Step, all_full, choose_by_price, choose_methods
from calibration.bench import bench
from calibration.budget import BATCHES, Tried, first_price, predicted_drift, spend, upper_drift
from calibration.error_table import PROJECTIONS, STRIDE, ErrorTable
from calibration.error_table import measure as measure_errors
from calibration.fast import LONGEST, Menu, decisions_of
from calibration.journal import Journal
from calibration.loss import Loss, relative_l2
from calibration.probe import Probe
from calibration.rehearsal import rehearse
from calibration.search import Found, cell_macs, filled_in, search
from calibration.sensitivity import Sensitivity, measure
from calibration.settings import Settings
from calibration.trace import Searched, Trace
from ditfastattn.condition import Condition
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.ranks import Ranks
from ditfastattn.sampling import Denoiser, Trajectory, sample_latents
from plans import Budget, Method, Plan
from plans.macs import plan_macs

_AT_FIRST = 0.6  # of a budget, that a fast search predicts when it begins


@dataclass
class Watch:
    """Who is told how far a calibration is."""

    on_step: Callable[[int, float], None] | None = None  # steps in all, attention MACs of this one as a share of full
    on_sensitivity: Callable[[int, Sensitivity], None] | None = None  # steps in all, what was measured at this one
    on_search: Callable[[float], None] | None = None  # the threshold of the search that begins
    on_verified: Callable[[Searched, float], None] | None = None  # a finished search, and what its plan costs (percent)
    on_batch: Callable[[int, int], None] | None = None  # batches of other noise sampled so far, and in all


@dataclass(frozen=True)
class Share:
    """This rank's images, of ``count`` that a calibration runs on."""

    mine: range
    count: int

    @classmethod
    def of(cls, count: int, ranks: Ranks) -> Self:
        return cls(ranks.share(count), count)


class Work:
    """
    Args:
        condition: of this rank's images.
        plan: all FULL.

    Raises:
        CalibrationError, StepError, PlanMismatch: the model's predictions are not what a plan needs.
    """

    def __init__(
        self,
        pipe: Any,
        adapter: ModelAdapter,
        plan: Plan,
        settings: Settings,
        condition: Condition,
        images: Share,
        journal: Journal | None,
        ranks: Ranks,
        watch: Watch,
    ) -> None:
        self.pipe, self.adapter, self.plan, self.settings = pipe, adapter, plan, settings
        self.images, self.journal, self.ranks, self.watch = images, journal, ranks, watch
        self.denoiser = Denoiser(pipe.transformer, condition, settings.guidance_scale)
        self.run = self._begin()
        self.call: Call = rehearse(adapter, plan, self.run)
        # What is there already, the same on every rank; the journal goes on changing.
        self.done: Trace = ranks.broadcast(deepcopy(journal.trace) if journal else Trace())
        self.sensitivities: list[Sensitivity] = []
        self.measuring_runs = 0
        self._full: list[Tensor] = []
        self._table_runs = 0  # of blocks, for the errors of cells

    def _begin(self) -> Trajectory:
        settings = self.settings
        return Trajectory(self.denoiser, self.pipe.scheduler, settings.steps, settings.seed, self.images.mine)

    def bench(self) -> AbstractContextManager[Probe]:
        """``with work.bench() as probe``: the model's blocks, for trials."""
        return bench(self.adapter, self.plan, self.call, self.settings, self.ranks)

    def errors(self, candidates: Sequence[Method], mlps: bool = False) -> ErrorTable:
        """Of all cells that these methods make, from one run; of MLPs too, where they are asked for."""
        with self.bench() as probe:
            return measure_errors(
                probe,
                self._begin(),
                self.plan.sampler.timesteps,
                candidates,
                longest=LONGEST,
                stride=STRIDE,
                mlps=mlps,
                projections=PROJECTIONS,
                seed=self.settings.seed,
            )

    def measure(self, known: Sequence[Sensitivity] = ()) -> None:
        """Sensitivities of all steps; ``known`` are those of another calibration that began alike."""
        done, steps = list(known or self.done.sensitivities), self.plan.steps
        for index, sensitivity in enumerate(done):
            self._measured(sensitivity, new=index >= len(self.done.sensitivities))
        with self.bench() as probe:
            self.sensitivities = measure(
                probe,
                self.run,
                self.plan.sampler.timesteps,
                self.settings.candidates()[0],
                self.ranks,
                done[:steps],
                lambda sensitivity: self._measured(sensitivity, new=True),
            )
            self.measuring_runs = probe.block_runs

    def _measured(self, sensitivity: Sensitivity, new: bool) -> None:
        if new and self.journal:
            self.journal.measured(sensitivity)
        if self.watch.on_sensitivity:
            self.watch.on_sensitivity(self.plan.steps, sensitivity)

    def search(self, threshold: float, done: Searched) -> Found:
        """One search from the beginning, with what is known of it.

        Args:
            threshold: of Algorithm 1; under a budget the price (:func:`calibration.algorithm.choose_by_price`), or in a
                fast search the drift that is predicted at most.
        """
        self.run = self._begin()
        if self.settings.search == "fast":
            return self._fast(threshold, done)
        candidates = self.settings.candidates()
        costs = {
            (layer, method): cell_macs(self.plan, place, method)
            for layer, place in enumerate(self.adapter.places)
            for method in Method
        }

        def choose(step: Step, index: int) -> Decision:
            loss = self._loss_at(index)
            if self.settings.budget is None:
                return choose_methods(step, candidates, loss, threshold)
            return choose_by_price(step, candidates, loss, threshold, lambda layer, method: costs[layer, method])

        return search(
            self.adapter,
            self.plan,
            self.run,
            self.call,
            self.settings,
            tuple(done.decisions),
            self.journal.append if self.journal else None,
            self.watch.on_step,
            self.ranks,
            choose if self.sensitivities else None,
        )

    def _fast(self, threshold: float, done: Searched) -> Found:
        """A search in which no candidate is tried: cells are chosen by their errors, and sampled with to the end."""
        known, before = len(done.decisions), self._table_runs
        chosen = decisions_of(self._menu, self._menu.within(threshold))
        decisions = (*done.decisions, *chosen[known:])
        for decision in decisions[known:] if self.journal else ():
            assert self.journal is not None
            self.journal.append(decision)
        given = (self.adapter, self.plan, self.run, self.call, self.settings, decisions)
        found = search(*given, on_step=self.watch.on_step, ranks=self.ranks, choose=lambda _, step: decisions[step])
        runs = found.block_runs + self._table_runs - before
        return replace(found, block_runs=runs, plain_block_runs=0, resumed_steps=known)

    @cached_property
    def _menu(self) -> Menu:
        """Schedules by the errors of single cells, measured in one run."""
        candidates = self.settings.candidates()
        table = self.errors(candidates)
        self._table_runs = table.block_runs
        return Menu(self.plan, table, [sensitivity.value for sensitivity in self.sensitivities], candidates)

    def _loss_at(self, step: int) -> Loss:
        """Predicted drift of the final latents: the step's sensitivity times the error of the guided prediction."""
        weight, run = self.sensitivities[step].value, self.run
        return lambda reference, candidate: (
            weight * relative_l2(run.guided(reference), run.guided(candidate), self.ranks)
        )

    def within(self, asked: float) -> tuple[Found, float, Budget]:
        """The cheapest plan whose drift stays within ``asked``, its threshold, and what was found of its drift."""
        searches: list[Searched] = []
        runs: list[Found] = []

        def attempt(index: int, threshold: float) -> Tried:
            known = index < len(self.done.searches)
            searched = self.done.searches[index] if known else Searched(threshold)
            if not known and self.journal:
                self.journal.begin_search(threshold)
            if searched.achieved:
                plan = filled_in(self.plan, [place.site for place in self.adapter.places], searched.decisions)
            else:
                if self.watch.on_search:
                    self.watch.on_search(searched.threshold or threshold)
                found = self.search(searched.threshold or threshold, searched)
                runs.append(found)
                plan = found.plan
                searched = Searched(searched.threshold, list(found.decisions), self.verify(plan))
                if self.journal:
                    self.journal.achieved(searched.achieved)
            searches.append(searched)
            cost = plan_macs(plan).percent
            if self.watch.on_verified:
                self.watch.on_verified(searched, cost)
            return Tried(searched.threshold or threshold, cost, upper_drift(searched.achieved))

        first = _AT_FIRST * asked if self.settings.search == "fast" else first_price(asked, self.plan.steps)
        _, index = spend(asked, first, attempt, self._cheapest())
        if index is None:  # nothing is compressed, which drifts by nothing
            index = len(searches)
            full = [all_full(len(self.adapter.places))] * self.plan.steps
            searches.append(Searched(0.0, full, (0.0,) * BATCHES))
            if self.journal and len(self.journal.trace.searches) == index:
                self.journal.begin_search(0.0)
                for decision in full:
                    self.journal.append(decision)
                self.journal.achieved(searches[-1].achieved)
        if self.journal:
            self.journal.choose(index)
        chosen = searches[index]
        self.watch = Watch()
        last = self.search(
            chosen.threshold or 0.0, chosen
        )  # every step is decided: its latents are what is still lacking
        found = replace(
            last,
            block_runs=last.block_runs + sum(run.block_runs for run in runs),
            plain_block_runs=last.plain_block_runs + sum(run.plain_block_runs for run in runs),
            residual_passes=last.residual_passes + sum(run.residual_passes for run in runs),
            resumed_steps=sum(run.resumed_steps for run in runs),
        )
        achieved = chosen.achieved
        predicted = predicted_drift(chosen.decisions)
        budget = Budget(asked=asked, predicted=predicted, achieved=achieved, upper=upper_drift(achieved))
        return found, chosen.threshold or 0.0, budget

    def _cheapest(self) -> float:
        """Percent of attention MACs with the cheapest candidate wherever there may be one, which is not at step 0."""
        methods = (Method.FULL, *self.settings.candidates())
        step = sum(min(cell_macs(self.plan, place, method) for method in methods) for place in self.adapter.places)
        return 100 * (1 + step * (self.plan.steps - 1)) / self.plan.steps

    def verify(self, plan: Plan) -> tuple[float, ...]:
        """Drift of the final latents in batches of other noise, each as large as the calibration's, all ranks together.

        The calibration's own images are the first of its seed, and the next as many those of its report; these follow.
        """
        share = self.images
        batches = [[(2 + batch) * share.count + image for image in share.mine] for batch in range(BATCHES)]
        before = 0 if self._full else BATCHES  # the uncompressed ones are sampled once
        total = before + BATCHES

        def sampled(done: int) -> list[Tensor]:
            found = []
            for index, indices in enumerate(batches):
                self._tell(done + index, total)
                found.append(self._sample(indices))
            return found

        self._full = self._full or sampled(0)
        with ditfastattn.apply(self.pipe.transformer, plan, kernel=self.settings.kernel):
            compressed = sampled(before)
        self._tell(total, total)
        return tuple(relative_l2(a, b, self.ranks) for a, b in zip(self._full, compressed, strict=True))

    def _tell(self, done: int, total: int) -> None:
        if self.watch.on_batch:
            self.watch.on_batch(done, total)

    def _sample(self, indices: Sequence[int]) -> Tensor:
        return sample_latents(self.denoiser, self.pipe.scheduler, self.plan.sampler, self.settings.seed, indices)
