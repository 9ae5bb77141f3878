"""Algorithm 1 step after step, on the trajectory of the plan chosen so far: for any model and any condition."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from calibration.algorithm import Decision, Step, all_full, choose_methods
from calibration.bench import bench
from calibration.loss import over_ranks
from calibration.plain import PlainStep
from calibration.replay import ReplayStep
from calibration.settings import Settings
from ditfastattn.models.base import Call, ModelAdapter, Place
from ditfastattn.ranks import ALONE, Ranks
from plans import Method, Plan, SiteName
from plans.macs import method_macs, plan_macs


class Sampling(Protocol):
    """One sampling run, a step at a time, as :class:`ditfastattn.sampling.Trajectory` is one."""

    def predict(self, step: int) -> Tensor:
        """The transformer's output for the latents as they are."""

    def advance(self, step: int, output: Tensor) -> None:
        """Moves the latents on by the transformer's output at ``step``."""


@dataclass(frozen=True)
class Found:
    """What a search found. ``block_runs`` counts this run only, not the steps a resumed run took over."""

    plan: Plan
    decisions: tuple[Decision, ...]  # their layers are the model's places, in order
    kernel: str
    block_runs: int
    plain_block_runs: int  # what Algorithm 1 without replay would have run
    residual_passes: int
    resumed_steps: int


def search(
    adapter: ModelAdapter,
    plan: Plan,
    run: Sampling,
    call: Call,
    settings: Settings,
    done: Sequence[Decision] = (),
    record: Callable[[Decision], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    ranks: Ranks = ALONE,
    choose: Callable[[Step, int], Decision] | None = None,
) -> Found:
    """Fills in the cells of an all-FULL plan.

    Args:
        call: a model call of this run; its latents, whose values do not matter, are those of the whole batch.
        done: decisions of the first steps, made before: the same on every rank.
        record: called with every new decision.
        on_step, ranks: as in :func:`calibration.calibrate.calibrate`.
        choose: decides one step, given its index; without it Algorithm 1 does, by the settings' loss and threshold.

    Raises:
        CalibrationError: an output that is not finite.
        RankError: another rank has ended.
    """
    choose = choose or _algorithm_1(settings, ranks)
    step_class = ReplayStep if settings.search == "replay" else PlainStep
    decisions: list[Decision] = []
    plain_runs = 0
    with bench(adapter, plan, call, settings, ranks) as probe:
        for index, timestep in enumerate(plan.sampler.timesteps):
            probe.blocks.begin_step(timestep)

            def predict(index: int = index) -> Tensor:
                return run.predict(index)

            if index < len(done) or index == 0:
                decision = done[index] if index < len(done) else all_full(probe.layers)
                output = probe.commit(predict, decision.methods)
                plain_runs += probe.layers
            else:
                step = step_class(probe, predict)
                decision = choose(step, index)
                output = step.output()
                plain_runs += probe.layers * (len(decision.trials) + 2)  # O, every O', and the chosen run
            if index >= len(done) and record:
                record(decision)
            decisions.append(decision)
            run.advance(index, output)
            if on_step:
                on_step(plan.steps, _macs_share(plan, probe.places, decision))
    names = dict.fromkeys(context.kernel.name for context in probe.contexts.values())
    return Found(
        plan=filled_in(plan, [place.site for place in probe.places], decisions),
        decisions=tuple(decisions),
        kernel=", ".join(names),
        block_runs=probe.block_runs,
        plain_block_runs=plain_runs,
        residual_passes=probe.residual_passes,
        resumed_steps=len(done),
    )


def filled_in(plan: Plan, order: Sequence[SiteName], decisions: Sequence[Decision]) -> Plan:
    """The plan with the methods and losses of every step, each in the grid of its site.

    Args:
        order: the site of each layer of a decision.

    Raises:
        ValueError: decisions of another shape than the plan.
    """
    for site in plan.sites:
        here = [layer for layer, name in enumerate(order) if name == site]
        methods = [[decision.methods[layer] for layer in here] for decision in decisions]
        losses = [[decision.losses[layer] for layer in here] for decision in decisions]
        plan = plan.with_methods(methods, losses, site=site)
    return plan


def _algorithm_1(settings: Settings, ranks: Ranks) -> Callable[[Step, int], Decision]:
    candidates, loss, threshold = settings.candidates(), over_ranks(settings.loss, ranks), settings.threshold
    assert threshold is not None
    return lambda step, _: choose_methods(step, candidates, loss, threshold)


def cell_macs(plan: Plan, place: Place, method: Method) -> float:
    """Attention MACs of one cell as a share of a step that is all FULL."""
    shape, window = plan.model.shape(place.site), plan.window_of(place.site)
    macs = shape.rows * method_macs(method, tokens=shape.tokens, width=plan.model.width, window=window)
    return macs / plan_macs(plan).full_step


def _macs_share(plan: Plan, places: Sequence[Place], decision: Decision) -> float:
    """Attention MACs of one step in units of all-FULL."""
    return math.fsum(cell_macs(plan, place, m) for place, m in zip(places, decision.methods, strict=True))
