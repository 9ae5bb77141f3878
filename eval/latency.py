"""How long sampling takes with a plan and without: the transformer alone and the whole pipeline."""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import ditfastattn
from ditfastattn.cost.steps import seconds
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.models.base import prepared
from ditfastattn.ranks import ALONE
from eval.arguments.latency import parser
from eval.baselines import Captured, compiled
from eval.breakdown import ATTENTION, Times, has_parts, part_times, step_parts
from eval.geometry import TRANSFORMERS, Geometry, build, sample
from eval.latency_plot import plot, plot_parts
from eval.paper import PAPER_SHARES
from eval.record import command_line, device_name, record
from eval.synthetic import floor_percent, synthetic_plan
from plans import Plan, load
from plans.files import write_text
from plans.macs import plan_macs

# Attention MACs in percent that the paper reports for D1..D6 (DiTFastAttn, Tables 1 and 2).
SHARES = (85, 69, 59, 49, 41, 34)  # for models that the paper does not time


@dataclass(frozen=True)
class Row:
    """One variant's medians. ``peak_bytes``: device memory reserved beyond the weights, at the peak of sampling."""

    model: str
    batch: int
    variant: str
    attention_macs: float  # percent of all FULL
    ms_per_step: float  # the transformer's call, guidance batch and all
    pipeline_s: float  # with the VAE
    peak_bytes: int
    prepare_s: float  # the first run, less a later one; plans after "ours, all FULL" find their pieces compiled
    plan_origin: str | None
    attention_ms: float | None  # of a step: self-attention with its norm and projections, from parts timed alone
    parts_ms: dict[str, float] | None  # all parts of the blocks (eval.breakdown)


class Clock:
    """Times the transformer's calls inside a pipeline's run, and the run."""

    def __init__(self, pipe: Any) -> None:
        self._device = pipe.device
        self._cuda = self._device.type == "cuda"
        self._marks: list[tuple[Any, Any]] = []
        self._hooks = [
            pipe.transformer.register_forward_pre_hook(lambda *_: self._marks.append((self._mark(), None))),
            pipe.transformer.register_forward_hook(lambda *_: self._end()),
        ]

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _end(self) -> None:
        self._marks[-1] = (self._marks[-1][0], self._mark())

    def run(self, work: Callable[[], None]) -> tuple[float, float]:
        """Milliseconds of a transformer call (mean over the run), seconds of the run."""
        self._marks.clear()
        taken = seconds(work, self._device)
        calls = [a.elapsed_time(b) if self._cuda else 1000 * (b - a) for a, b in self._marks]
        return statistics.mean(calls), taken


class Variant:
    """A pipeline of its own, sampled in one way."""

    def __init__(
        self, name: str, geometry: Geometry, images: int, steps: int, plan: Plan | None, origin: str | None
    ) -> None:
        self.name, self.pipe, self.plan, self.origin = name, geometry.pipe, plan, origin
        self.images, self.steps = images, steps
        self._clock = Clock(self.pipe)
        self.times: list[tuple[float, float]] = []
        before = _reserved()
        self.first_s = self._once()[1]
        self.times.append(self._once())
        self.peak_bytes = max(0, _peak() - before)

    def _once(self) -> tuple[float, float]:
        return self._clock.run(lambda: sample(self.pipe, self.images, self.steps))

    def repeat(self) -> None:
        self.times.append(self._once())

    def row(self, model: str, times: Times) -> Row:
        parts = None if self.plan is None or not has_parts(self.plan) else step_parts(self.plan, times)
        ms, whole = (statistics.median(column) for column in zip(*self.times[1:] or self.times, strict=True))
        return Row(
            model=model,
            batch=self.images,
            variant=self.name,
            attention_macs=100.0 if self.plan is None else round(plan_macs(self.plan).percent, 1),
            ms_per_step=round(ms, 4),
            pipeline_s=round(whole, 4),
            peak_bytes=self.peak_bytes,
            prepare_s=round(max(0.0, self.first_s - whole), 2),
            plan_origin=self.origin,
            attention_ms=None if parts is None else round(sum(parts[part] for part in ATTENTION), 4),
            parts_ms=None if parts is None else {part: round(value, 4) for part, value in parts.items()},
        )


def measure(args: argparse.Namespace, images: int) -> list[Row]:
    """All variants at one batch, their repeats interleaved."""
    dtype = getattr(torch, args.dtype)

    def fresh() -> Geometry:
        return build(args.model, args.device, dtype)

    def variant(name: str, geometry: Geometry, plan: Plan | None = None, origin: str | None = None) -> Variant:
        return Variant(name, geometry, images, args.steps, plan, origin)

    def follow(plan: Plan, name: str, origin: str) -> tuple[Variant, ditfastattn.Session]:
        geometry = fresh()
        session = ditfastattn.apply(geometry.pipe, plan, kernel=args.kernel, compile=True, graphs=True)
        return variant(name, geometry, plan, origin), session

    variants: list[Variant] = []
    plain = fresh()
    prepared(adapt(plain.pipe.transformer))  # refused now, not after the first runs
    full = plain.full_plan(args.steps)
    if not args.no_eager:
        variants.append(variant("eager", plain))
    if torch.device(args.device).type == "cuda":
        whole = fresh()
        whole.pipe.transformer = compiled(whole.pipe.transformer)
        on_device(whole.pipe)
        if not args.no_eager:
            variants.append(variant("compiled", whole))
        captured = replace(whole, pipe=copy.copy(whole.pipe))  # the same weights, compiled once
        captured.pipe.transformer = Captured(whole.pipe.transformer)
        variants.append(variant("compiled + graph", captured))
    ours, _ = follow(full, "ours, all FULL", "all FULL")
    variants.append(ours)
    for _ in tqdm(range(args.repeats), desc=f"{args.model}, batch {images}", leave=False):
        for each in variants:
            each.repeat()
    # After those, so that what it compiles is not in their first runs.
    times = part_times(plain.pipe.transformer, 2 * images, full.window, Layout(full.guidance.layout), args.kernel)
    rows = [each.row(args.model, times) for each in variants]
    _show(rows)
    for plan, origin in _plans(args, full):
        planned, session = follow(plan, "ours, plan", origin)
        for _ in range(args.repeats):
            ours.repeat()  # a change of clocks in between would show
            planned.repeat()
        rows.append(planned.row(args.model, times))
        _show(rows[-1:])
        session.remove()
        del planned, session
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows


def on_device(pipe: Any) -> None:
    """Timesteps on the pipeline's device, as a session has them too: else every call waits for one to be copied."""
    set_timesteps = pipe.scheduler.set_timesteps
    pipe.scheduler.set_timesteps = partial(set_timesteps, device=pipe.device)


def _plans(args: argparse.Namespace, full: Plan) -> list[tuple[Plan, str]]:
    if args.plan:
        return [(load(args.plan), "calibrated")]
    shares = [*(args.shares or PAPER_SHARES.get(args.model, SHARES)), floor_percent(args.steps)]
    return [
        (synthetic_plan(full, share), "synthetic, methods mixed as in the demo's calibrated plans") for share in shares
    ]


def _show(rows: Sequence[Row]) -> None:
    for row in rows:
        tqdm.write(
            f"{row.variant:<18} {row.attention_macs:5.1f} %  {row.ms_per_step:8.3f} ms a step  "
            f"{row.pipeline_s:7.3f} s  {row.peak_bytes / 2**20:7.0f} MiB  first run + {row.prepare_s:.1f} s"
        )


def _reserved() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


def _peak() -> int:
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.device = ALONE.device(args.device)
    device = device_name(args.device)
    note = "random weights, synthetic plans" if args.model in TRANSFORMERS else "trained weights"
    print(f"{args.model}: {note}; {device}, {args.dtype}, {args.steps} steps, guidance")
    args.out.mkdir(parents=True, exist_ok=True)
    for images in args.batch:
        name = Path(args.model).name
        result = {
            "model": name,
            "batch": images,
            "what": f"{note}; medians of {args.repeats} interleaved runs; B images are a batch of 2 B rows",
            **record(command_line("latency", argv), device, args.dtype),
            "steps": args.steps,
            "rows": [asdict(row) for row in measure(args, images)],
        }
        file = args.out / "latency.json"
        results = [*(old for old in read_results(file) if (old["model"], old["batch"]) != (name, images)), result]
        write_text(file, json.dumps(results, indent=1) + "\n")
        plot(results, args.out / "latency.png")
        plot_parts(results, args.out / "latency_parts.png")
        print(f"written: {file}, and its pictures beside it")


def read_results(file: Path) -> list[dict[str, Any]]:
    """What was measured before: one entry for each model and batch."""
    return json.loads(file.read_text()) if file.exists() else []
