"""Time and memory of eager sampling in every family of models, without a plan, all FULL, and with plans.

Eager mode is what all families have. What a plan's caches take is predicted from the plan alone, and compared with what
the device's allocator handed out: at the end of each step's last block, beyond the same moment of an all-FULL run.
"""

import argparse
import gc
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import ditfastattn
from ditfastattn.models import adapt
from ditfastattn.ranks import ALONE
from eval.arguments.families import FILE, parser
from eval.geometry import TRANSFORMERS, Geometry, build
from eval.latency import SHARES, Clock, read_results
from eval.paper import PAPER_SHARES
from eval.record import command_line, device_name, record
from eval.synthetic import synthetic_plan
from plans import SiteName
from plans.files import write_text
from plans.macs import plan_macs, site_macs


@dataclass(frozen=True)
class Row:
    """One variant. Bytes are None where the device does not count them."""

    variant: str  # no plan, all FULL, plan
    attention_macs: float  # percent of all FULL, all sites together
    site_macs: dict[SiteName, float]
    ms_per_step: float  # of the transformer, guidance batch and all
    kernels: dict[SiteName, str]  # what computes the windows, with what it was chosen by
    cache_predicted: int  # bytes
    cache_measured: int | None
    peak_bytes: int | None  # most that the transformer's calls took at one time beyond the weights


@dataclass(frozen=True)
class Measured:
    """Some runs of one variant. ``held``: bytes that tensors take at the end of each step's last block."""

    ms_per_step: float
    held: list[int]
    peak_bytes: int | None


class Watched:
    """A pipeline's runs, timed, with the device's memory looked at as each step ends. A look takes microseconds."""

    def __init__(self, geometry: Geometry, images: int, steps: int) -> None:
        self._geometry, self._images, self._steps = geometry, images, steps
        self._cuda = geometry.pipe.device.type == "cuda"
        self._held: list[int] = []
        self._peak = 0
        self._clock = Clock(geometry.pipe)
        last, _ = adapt(geometry.pipe.transformer).modules[-1]
        last.register_forward_hook(lambda *_: self._look())

    def runs(self, repeats: int) -> Measured:
        """``repeats`` runs after one that prepares; their median, and the memory of the last."""
        times = [self._once() for _ in range(repeats + 1)][1:]
        return Measured(statistics.median(times), self._held, self._peak if self._cuda else None)

    def _once(self) -> float:
        self._held = []
        before = 0
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        ms, _ = self._clock.run(lambda: self._geometry.sample(self._images, self._steps))
        self._peak -= before
        return ms

    def _look(self) -> None:
        if self._cuda:
            stats = torch.cuda.memory_stats_as_nested_dict()
            self._held.append(stats["requested_bytes"]["all"]["current"])  # before the allocator rounds them up
            self._peak = stats["allocated_bytes"]["all"]["peak"]


def measure(name: str, args: argparse.Namespace) -> list[Row]:
    """All variants of one model, on one pipeline."""
    geometry = build(name, args.device, getattr(torch, args.dtype))
    full = geometry.full_plan(args.steps)
    watched = Watched(geometry, args.batch, args.steps)
    plain = watched.runs(args.repeats)
    everything: dict[SiteName, float] = dict.fromkeys(full.sites, 100.0)
    rows = [Row("no plan", 100.0, everything, round(plain.ms_per_step, 3), {}, 0, None, plain.peak_bytes)]
    _show(rows[-1])
    baseline: list[int] = []
    shares = args.shares or PAPER_SHARES.get(name, SHARES)[1::2]
    for variant, plan in [("all FULL", full), *(("plan", synthetic_plan(full, share)) for share in shares)]:
        with ditfastattn.apply(geometry.pipe, plan, kernel=args.kernel) as session:
            measured = watched.runs(args.repeats)
            summary = session.summary()
        baseline = baseline or measured.held
        rows.append(
            Row(
                variant=variant,
                attention_macs=round(plan_macs(plan).percent, 1),
                site_macs={site: round(site_macs(plan, site).percent, 1) for site in plan.sites},
                ms_per_step=round(measured.ms_per_step, 3),
                kernels={site: str(found.kernel) for site, found in summary.sites.items()},
                cache_predicted=summary.predicted_peak_cache_bytes,
                cache_measured=most_beyond(measured.held, baseline),
                peak_bytes=measured.peak_bytes,
            )
        )
        _show(rows[-1])
    return rows


def most_beyond(held: Sequence[int], baseline: Sequence[int]) -> int | None:
    """The most that ``held`` exceeds ``baseline`` by at the same step; None where neither was counted."""
    return max((ours - theirs for ours, theirs in zip(held, baseline, strict=True)), default=None)


def _show(row: Row) -> None:
    found = "" if row.cache_measured is None else f", {row.cache_measured / 2**20:.1f} measured"
    peak = "" if row.peak_bytes is None else f", peak {row.peak_bytes / 2**20:.0f} MiB"
    tqdm.write(
        f"{row.variant:<9} {row.attention_macs:5.1f} %  {row.ms_per_step:8.2f} ms a step, "
        f"caches {row.cache_predicted / 2**20:.1f} MiB predicted{found}{peak}"
    )
    for site, kernel in row.kernels.items():
        tqdm.write(f"          {site}: {kernel}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.device = ALONE.device(args.device)
    device = device_name(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.model:
        note = ("random" if name in TRANSFORMERS else "trained") + " weights, synthetic plans"
        print(f"{name}, batch {args.batch}: {note}; {device}, {args.dtype}, {args.steps} steps, eager", flush=True)
        result: dict[str, Any] = {
            "model": Path(name).name,
            "batch": args.batch,
            "kernel": args.kernel,
            "what": f"{note}; medians of {args.repeats} runs; B images or videos are a batch of 2 B",
            **record(command_line("families", argv), device, args.dtype),
            "steps": args.steps,
            "rows": [asdict(row) for row in measure(name, args)],
        }
        file = args.out / FILE
        key = ("model", "batch", "kernel")
        kept = [old for old in read_results(file) if any(old[part] != result[part] for part in key)]
        write_text(file, json.dumps([*kept, result], indent=1) + "\n")
        print(f"written: {file}", flush=True)
        gc.collect()  # hooks hold on to the pipeline that they are on
