"""Quality against cost: fewer steps, the schedules of others, the paper's search, and plans priced cell by cell.

Images of the same noise by every way of spending less, compared with the uncompressed images of the base's steps. Cost
counts the MACs of attention and MLPs, storing residuals included; a plan of fewer steps is compressed no further than
its share asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ditfastattn.errors import DitFastAttnError
from eval import pareto_file, pareto_grid, pareto_options, pareto_plot, pareto_table, pareto_time
from eval.arguments.pareto import SHARES, parser
from eval.drift_runs import mean_psnr
from eval.pareto_again import Again
from eval.pareto_bench import Bench, Candidate, Way
from eval.pareto_cache_dit import DualBlockCache
from eval.pareto_fd import Distance, Drawing, chosen
from eval.pareto_ours import ours
from eval.pareto_paper import paper
from eval.pareto_rivals import cache_dit, rivals, smoothcache
from eval.pareto_time import stopwatch_of, timed_as
from eval.record import command_line, device_name, record
from eval.similarity import ssim

SOURCES: dict[str, Callable[[Bench, int], Iterator[Candidate]]] = {
    "rivals": rivals,
    "smoothcache": smoothcache,
    "cache-dit": cache_dit,
    "ours": ours,
    "paper": paper,
}


@dataclass
class Tried:
    """A row, and what draws more images as it does."""

    row: dict[str, Any]
    way: Way
    shown: torch.Tensor


class Comparison:
    """One model's rows from one number of base steps."""

    def __init__(self, bench: Bench, base: int, record: dict[str, Any]) -> None:
        args = bench.args
        self.bench, self.base = bench, base
        self.stopwatch = stopwatch_of(bench, base) if "timed" in record else None
        bench.stopwatch = self.stopwatch
        self.table = pareto_file.Table(args.out / pareto_file.NAME, {**record, "base_steps": base})
        self.tried: list[Tried] = []
        self.reference = bench.sampled(None, base).sampled

    def add(self, method: str, setting: str, way: Way, steps: int) -> None:
        """Samples, compares, times, and writes the row."""
        try:
            found, macs, attention = self.bench.sampled(way, steps)
        except Exception as error:
            _excused(way, "left out", error)
            return
        a, b = (sampled.pixels.permute(0, 3, 1, 2) for sampled in (self.reference, found))
        row = {
            "model": Path(self.bench.args.model).name,
            "method": method,
            "setting": setting,
            "base_steps": self.base,
            "steps": steps,
            "total_macs": round(100 * macs * steps / self.base, 2),
            "attention_macs": round(100 * attention * steps / self.base, 2),
            **self._times(way, steps),
            "psnr": mean_psnr(self.reference, found),
            "ssim": round(float(ssim(a, b).mean()), 4),
            "latent_rel_l2": round(self.reference.distance(found), 5),
            "fd": None,
        }
        self.tried.append(Tried(row, way, found.pixels[: pareto_grid.COLUMNS]))
        self.table.add(row, pareto_file.digest(way))
        faster = "" if row["speedup"] is None else pareto_table.times(row)
        print(f"{self.base} {method:<30} {setting:<40} {row['total_macs']:6.1f} % {faster:>7} {row['psnr']} dB "
              f"{row['latent_rel_l2']:.4f}", flush=True)  # fmt: skip

    def _times(self, way: Way, steps: int) -> dict[str, float | None]:
        if self.stopwatch is not None:
            try:
                return {**self.stopwatch.speedup(timed_as(way), steps).as_row()}
            except Exception as error:
                _excused(way, "not timed", error)
        return dict.fromkeys(pareto_file.TIMES)

    def distances(self, distance: Distance) -> None:
        """Frechet distances of the uncompressed images, and of the rows that `pareto_fd.chosen` names."""
        rows = [id(row) for row in chosen([one.row for one in self.tried], self.bench.args.fd_shares)]
        drawing = Drawing(self.bench)
        for one in self.tried:
            if id(one.row) in rows:
                fd = distance(drawing.pixels(one.way, one.row["steps"]))
                one.row.update({"fd": fd, pareto_file.FD_IN: one.row[pareto_file.RUN]})
                self.table.write()
                print(f"{self.base} {one.row['method']:<30} {one.row['setting']:<40} distance {one.row['fd']:.2f}",
                      flush=True)  # fmt: skip

    def grid(self, file: Path) -> None:
        shown = [pareto_grid.Shown(one.row, one.shown) for one in self.tried]
        pareto_grid.save(file, Path(self.bench.args.model).name, self.base, self.reference.pixels, shown, SHARES)


def _excused(way: Way, what: str, error: Exception) -> None:
    """What another's package cannot run is no reason to lose the other rows."""
    if not isinstance(way, DualBlockCache):
        raise error
    print(f"{what}: {way.method}, {way.setting}: {' '.join(str(error).split())[:200]}", flush=True)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print, and write into pareto.json; every row is written as it is measured."""
    args = parser().parse_args(argv)
    pareto_options.check(args)
    if bool(args.fd) != (args.fd_reference is not None):
        raise DitFastAttnError("a Frechet distance needs --fd N and --fd-reference FILE: give both, or neither")
    if args.fd < 0 or args.fd == 1:
        raise DitFastAttnError(f"--fd {args.fd}; expected at least 2 images, or 0 for none")
    distance = Distance(args.fd_reference, args.device) if args.fd else None
    bench = Bench(args)
    on_gpu = torch.device(args.device).type == "cuda"
    told = {
        "model": Path(args.model).name,
        "base_steps": 0,
        pareto_file.RUN: pareto_file.run_name(),
        **record(command_line("pareto", argv, ("--out", "--device")), device_name(args.device), args.dtype),
        "images": args.n,
        "guidance": args.guidance,
    }
    if on_gpu and not args.no_time:
        told["timed"] = (
            f"{pareto_time.what(args.repeats)}; cache-dit with compiled blocks; batch {args.time_batch}, "
            f"{args.time_dtype}"
        )
    if distance is not None:
        drawn = f"{args.fd} images in {args.fd_dtype or args.dtype}"
        told["fd"] = f"{drawn}, EfficientNet-Lite0 features (not FID), to {distance.reference}"
    if args.again:
        _follow_again(bench, told, distance)
        return
    for base in args.base_steps:
        compared = Comparison(bench, base, told)
        if distance is not None:
            distance.check(compared.reference.pixels.shape[1])  # now, not after all rows
        compared.add("full", "uncompressed", None, base)
        for source in args.only or SOURCES:
            for candidate in SOURCES[source](bench, base):
                compared.add(*candidate)
        compared.grid(args.out / grid_name(told["model"], base))
        pareto_plot.plot(pareto_file.read(args.out / pareto_file.NAME)["rows"], args.out / "pareto.png")
        if distance is not None:
            compared.distances(distance)
    print(f"written: {args.out / pareto_file.NAME}")


def _follow_again(bench: Bench, told: dict[str, Any], distance: Distance | None) -> None:
    """What is asked for, of the rows that a file has."""
    args = bench.args
    file, plans = args.again, args.plans or args.again.parent / "plans"
    for base in args.base_steps:
        again = Again(bench, {**told, "base_steps": base}, file, plans)
        if distance is not None:
            distance.check(bench.sampled(None, base, 1).sampled.pixels.shape[1])  # now, not after all times
        if "timed" in told:
            again.times(stopwatch_of(bench, base))
        again.picture(file.with_name(grid_name(told["model"], base)))
        if distance is not None:
            again.distances(distance)
    pareto_plot.plot(pareto_file.read(file)["rows"], file.with_name("pareto.png"))
    print(f"written: {file}")


def grid_name(model: str, base: int) -> str:
    """Of the picture of images."""
    return f"pareto-images-{model}-{base}.png"
