"""Algorithm 1 step after step, on the trajectory of the plan chosen so far: for any model and any condition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from calibration.algorithm import Decision, all_full, choose_methods
from calibration.blocks import Blocks, EagerBlocks, PieceBlocks
from calibration.journal import Journal
from calibration.loss import over_ranks
from calibration.plain import PlainStep
from calibration.probe import Probe
from calibration.replay import ReplayStep
from calibration.settings import Settings
from ditfastattn.batch import like_queries
from ditfastattn.execute import Context, Contexts
from ditfastattn.kernels import make_kernel, settled
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, ModelAdapter, Place, prepared
from ditfastattn.order import Ordering, order_for
from ditfastattn.pieces import compiled_pieces
from ditfastattn.ranks import ALONE, Ranks
from plans import Plan, SiteName
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
    journal: Journal | None = None,
    on_step: Callable[[int, float], None] | None = None,
    ranks: Ranks = ALONE,
) -> Found:
    """Fills in the cells of an all-FULL plan.

    Args:
        call: a model call of this run; its latents, whose values do not matter, are those of the whole batch.
        journal, on_step, ranks: as in :func:`calibration.calibrate.calibrate`.

    Raises:
        CalibrationError: an output that is not finite.
        RankError: another rank has ended.
    """
    candidates, latents = settings.candidates(), call.latents
    contexts = _contexts(adapter, plan, latents, settings.kernel, ranks)
    ordering = Ordering(order_for(plan.token_order, candidates), plan.window, adapter.per_image)
    ordering.fit(adapter.grid(*latents.shape[-2:]), latents.device)
    step_class = ReplayStep if settings.search == "replay" else PlainStep
    done = ranks.broadcast(list(journal.decisions) if journal else [])
    loss = over_ranks(settings.loss, ranks)
    decisions: list[Decision] = []
    plain_runs = 0
    blocks: Blocks = EagerBlocks(adapter, contexts)
    if settings.compile:
        blocks = PieceBlocks(prepared(adapter), contexts, compiled_pieces(), call)
    with Probe(adapter, contexts, ordering, any(method.windowed for method in candidates), blocks) as probe:
        for index, timestep in enumerate(plan.sampler.timesteps):
            blocks.begin_step(timestep)

            def predict(index: int = index) -> Tensor:
                return run.predict(index)

            if index < len(done) or index == 0:
                decision = done[index] if index < len(done) else all_full(probe.layers)
                output = probe.commit(predict, decision.methods)
                plain_runs += probe.layers
            else:
                step = step_class(probe, predict)
                decision = choose_methods(step, candidates, loss, settings.threshold)
                output = step.output()
                plain_runs += probe.layers * (len(decision.trials) + 2)  # O, every O', and the chosen run
            if index >= len(done) and journal:
                journal.append(decision)
            decisions.append(decision)
            run.advance(index, output)
            if on_step:
                on_step(plan.steps, _macs_share(plan, probe.places, decision))
    names = dict.fromkeys(context.kernel.name for context in contexts.values())
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


def _contexts(adapter: ModelAdapter, plan: Plan, latents: Tensor, kernel: str, ranks: Ranks) -> Contexts:
    """Kernel and window of every site."""
    found = {}
    for site in plan.sites:
        queries, window = like_queries(plan, site, latents, adapter.dtype), plan.window_of(site)
        # What one rank has measured, all use.
        name = ranks.broadcast(settled(kernel, queries, window) if ranks.first else "")
        found[site] = Context(make_kernel(name, queries, window), window, Layout(plan.guidance.layout))
    return found


def _macs_share(plan: Plan, places: Sequence[Place], decision: Decision) -> float:
    """Attention MACs of one step in units of all-FULL."""
    macs = 0
    for place, method in zip(places, decision.methods, strict=True):
        shape, window = plan.model.shape(place.site), plan.window_of(place.site)
        macs += shape.rows * method_macs(method, tokens=shape.tokens, width=plan.model.width, window=window)
    return macs / plan_macs(plan).full_step
