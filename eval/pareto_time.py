"""How much faster a way of sampling is: the sampling loop alone, against the uncompressed compiled model."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

import ditfastattn
from calibration.pool import compresses_nothing
from ditfastattn.condition import Condition
from ditfastattn.cost import CAPTURED, CostTable, measured
from ditfastattn.cost.steps import seconds
from ditfastattn.models import adapt
from ditfastattn.models.base import PreparedModel
from ditfastattn.samplers import inference_steps
from ditfastattn.sampling import Denoiser, label_condition, sample_latents
from eval.baselines import Captured
from eval.latency import on_device
from eval.pareto_bench import Bench, Way, copied
from plans import Plan


def what(repeats: int) -> str:
    """How speed-ups are measured, for a record."""
    rounds = f"medians and quartiles of {repeats} rounds" if repeats > 1 else "a single round"
    return (
        f"sampling loop without VAE; {rounds}, each of the uncompressed model, which is compiled as a whole and "
        "captured as a CUDA graph, and then of the other way; plans by prepared steps"
    )


class Faster(NamedTuple):
    """Times as fast as the uncompressed run: of the ratios of all rounds the median, and the quartiles."""

    speedup: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Self:
        """Rounded as they are written; of a single round all three are its ratio."""
        enough = ratios if len(ratios) > 1 else 2 * [*ratios]
        low, median, high = statistics.quantiles(enough, n=4, method="inclusive")
        return cls(*(round(ratio, 3) for ratio in (median, low, high)))

    def as_row(self) -> dict[str, float]:
        """The fields of a row of pareto.json."""
        return {"speedup": self.speedup, "speedup_low": self.low, "speedup_high": self.high}


def timed_as(way: Way) -> Way:
    """A plan that compresses nothing need not be followed step by step: it is timed as the uncompressed model is."""
    return None if isinstance(way, Plan) and compresses_nothing(way) else way


class Stopwatch:
    """Times sampling runs of one batch, on a GPU.

    The uncompressed model is compiled as a whole and captured as a CUDA graph, plans are followed by prepared steps,
    captured too; both as in ``python -m eval latency``. A cache that decides at run time cannot be captured: its blocks
    are compiled, all else is eager. Timesteps are on the device for all.

    Args:
        pipe: left alone; copies are in ``dtype``.
        condition: of the batch, on the pipeline's device; embeddings in ``dtype``.
        base: model calls of the uncompressed run that the others are compared with.
        repeats: rounds in which each way is timed, every time after the uncompressed model.
    """

    def __init__(
        self,
        pipe: Any,
        dtype: torch.dtype,
        condition: Condition,
        scale: float,
        base: int,
        repeats: int,
    ) -> None:
        self._planned, self._full = copied(pipe, dtype), copied(pipe, dtype)
        on_device(self._planned)
        on_device(self._full)
        # Replayed, the graph is not touched by what else is compiled or installed later.
        self._captured = captured(self._full.transformer)
        self._condition, self._scale, self._base, self._repeats = condition, scale, base, repeats
        self._device = self._planned.device
        self._run(self._captured, self._full.scheduler, base)

    def at(self, base: int) -> Stopwatch:
        """The same compiled model; others are compared with another number of its steps."""
        other = copy.copy(self)
        other._base = base
        return other

    def speedup(self, how: Way, steps: int) -> Faster:
        """Time of the uncompressed run of the base's steps by that of a run of ``steps`` model calls by ``how``."""
        planned = self._planned
        if how is None:
            return self._compared(lambda: self._run(self._captured, self._full.scheduler, steps))
        if isinstance(how, Plan):
            with ditfastattn.apply(planned, how, compile=True, graphs=True):
                return self._first(lambda: self._run(planned.transformer, planned.scheduler, steps))
        running = how.on(planned.transformer, steps)
        for block in running.blocks:
            block.compile(fullgraph=True, dynamic=False)

        def run() -> None:
            running.begin()
            self._run(running.transformer, planned.scheduler, steps)

        return self._first(run)

    def table(self) -> CostTable:
        """What the cells of plans cost here, followed as they are when they are timed."""
        adapter = adapt(self._planned.transformer)
        assert isinstance(adapter, PreparedModel), "only models that can be prepared are timed"
        rows = len(self._condition) * (1 if self._scale == 1 else 2)
        return measured(adapter, rows, CAPTURED, guided=self._scale != 1)

    def full_ms(self) -> float:
        """Milliseconds of the uncompressed run of the base's steps."""
        times = [self._full_run() for _ in range(self._repeats)]
        return 1000 * statistics.median(times)

    def _run(self, transformer: Any, scheduler: Any, steps: int) -> None:
        denoiser = _Denoiser(transformer, self._condition, self._scale)
        sample_latents(
            denoiser, scheduler, inference_steps(scheduler, steps), 0, range(len(self._condition)), copy=False
        )

    def _full_run(self) -> float:
        """Seconds."""
        return seconds(lambda: self._run(self._captured, self._full.scheduler, self._base), self._device)

    def _first(self, run: Callable[[], None]) -> Faster:
        """Compiles and captures in a run of its own; the uncompressed model is past that."""
        run()
        return self._compared(run)

    def _compared(self, run: Callable[[], None]) -> Faster:
        return Faster.of([self._full_run() / seconds(run, self._device) for _ in range(self._repeats)])


def stopwatch_of(bench: Bench, base: int) -> Stopwatch:
    """Of the batch that a command's options name, for the images that its plans are judged by."""
    args = bench.args
    labels = [bench.unseen[index % args.n] for index in range(args.time_batch)]
    condition = label_condition(bench.pipe.transformer, labels)
    return Stopwatch(bench.pipe, getattr(torch, args.time_dtype), condition, args.guidance, base, args.repeats)


class _Denoiser(Denoiser):
    """Also calls what stands in the place of a transformer (``Captured``)."""

    def __init__(self, transformer: Any, condition: Condition, scale: float) -> None:
        super().__init__(getattr(transformer, "inner", transformer), condition, scale)
        self.called = transformer

    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        batch = torch.cat([latents, latents]) if self.guided else latents
        timesteps = timestep.expand(len(batch))
        output: Tensor = self.called(batch, timestep=timesteps, return_dict=False, **self.arguments)[0]
        return output


def captured(transformer: Any) -> Any:
    """What a careful user has without us."""
    return Captured(transformer)
