"""``python -m calibration --speedup 1.5``, ``--latency-ms`` and ``advise``: plans within a budget of measured time."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calibration.advice import advise, name_of, sentence
from calibration.drift import drift, sample
from calibration.errors import CalibrationError
from calibration.picture import save_grid
from calibration.planner import Planner
from calibration.prices import Times
from calibration.progress import bars
from calibration.run_time import RUNS, run_ms
from calibration.settings import Settings
from calibration.speedup import NEAR, Front, Tried, landed
from calibration.subjects import Subjects
from calibration.trials import Outcome
from ditfastattn.condition import Condition
from ditfastattn.cost import CAPTURED, COMPILED, EAGER, CostTable, measured
from ditfastattn.models import adapt
from ditfastattn.models.base import PreparedModel
from ditfastattn.samplers import inference_steps
from plans import Plan, PlanError, load, save
from plans.figure import picture

NOTE = "least drift found"  # how the notes of its plans begin
FAR = 1.5  # between the table and the clock, from which on one of the two was measured on a busy machine


def plan_speedups(
    options: argparse.Namespace,
    paths: Sequence[Path],
    pipe: Any,
    settings: Settings,
    condition: Condition,
    subjects: Subjects,
) -> int:
    """Plans, pictures and images for every speedup or latency asked for; with ``options.advise`` a page about them."""
    images = settings.images if options.batch is None else options.batch
    timed = condition.of([index % settings.images for index in range(images)])

    def clock(plan: Plan, runs: int = RUNS) -> float:
        return run_ms(pipe, plan, timed, settings.kernel, options.compile, runs)

    table = _table(options, pipe, settings, condition, images)
    planner = _planner(options, pipe, settings, condition, table)
    print("timing the uncompressed run", flush=True)
    full, by_table = clock(planner.full), planner.prices.of(planner.full)
    if _far(by_table, full):
        full = clock(planner.full)  # something else may have been running
    if _far(by_table, full):
        print(f"the table of {table.date} says {by_table:.1f} ms and the clock {full:.1f} ms: it is measured again")
        table = _table(options, pipe, settings, condition, images, refresh=True)
        planner = _planner(options, pipe, settings, condition, table)
        full, by_table = clock(planner.full), planner.prices.of(planner.full)
        if _far(by_table, full):
            print(
                f"the table still says {by_table:.1f} ms and the clock {full:.1f} ms: predicted times below are that "
                "far off, and only the one that is measured at the end is to be trusted"
            )
    timings: list[tuple[Plan, Timed]] = []

    def in_turn(plan: Plan) -> Timed:
        tqdm.write("timing the best that was found, in turn with the uncompressed run")
        timings.append((plan, Timed.of([(clock(plan, 1), clock(planner.full, 1)) for _ in range(RUNS)])))
        return timings[-1][1]

    how = f"{table.key.runtime}, {images} {'image' if images == 1 else 'images'} at once, {table.key.device}"
    print(f"uncompressed: {full:.1f} ms for {settings.steps} steps ({how})")
    if planner.slow:
        print(f"not faster than FULL here, and so not used: {', '.join(planner.slow)}")
    shares = _shares(options, full)
    with bars("errors of cells") as watch:
        planner.errors(watch)
    fronts: list[tuple[float, Front, float]] = []
    asked_ms = [None] * len(options.speedup) + options.latency_ms
    for path, text, share, latency in zip(paths, names(options), shares, asked_ms, strict=True):

        def on_miss(front: Front, taken: float, text: str = text, share: float = share) -> None:
            less = "less" if taken > share else "more"
            tqdm.write(
                f"{text}: the best found ({name_of(front.best, pipe.scheduler)}) is {1 / taken:.2f} x as fast by the "
                f"clock, {1 / share:.2f} x was asked for; a second search has {less} time"
            )

        with _bar(text) as told:
            front, taken = landed(
                lambda budget: planner.within(budget, *told),
                by_table,
                share,
                (lambda plan: in_turn(plan).share) if latency is None else (lambda plan: in_turn(plan).ms / full),
                on_miss=on_miss,
            )
        best_time = next(one for plan, one in timings if plan is front.best.plan)
        fronts.append((1 / share, front, 1 / best_time.share))
        print(_described(text, front, by_table, pipe.scheduler))
        print(sentence(1 / share, front, pipe.scheduler))
        _write(path, planner, front, best_time, how, subjects.names)
        if taken > share * (1 + NEAR):
            print(
                f"slower than asked for: {1 / taken:.2f} x by the clock in the place of {1 / share:.2f} x; ask for more"
            )
    if options.advise:
        model = Path(options.model).name
        page = advise(Path(options.output), model, how, settings.steps, full, by_table, fronts, pipe.scheduler)
        print(f"\nadvice   {page}\n")
        print(page.read_text())
    return 0


@dataclass(frozen=True)
class Timed:
    """A plan's run and the uncompressed one, in milliseconds, and the share that the first is of the second: medians of
    runs in turn, as a machine may be slowed by others for a while."""

    ms: float
    full_ms: float
    share: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Timed:
        ms, full_ms = (statistics.median(each) for each in zip(*pairs, strict=True))
        return cls(ms, full_ms, statistics.median(plan / full for plan, full in pairs))


def _far(by_table: float, by_clock: float) -> bool:
    return not 1 / FAR <= by_table / by_clock <= FAR


def _planner(
    options: argparse.Namespace, pipe: Any, settings: Settings, condition: Condition, table: CostTable
) -> Planner:
    evaluations = Planner.evaluations if options.evaluations is None else options.evaluations
    prices = Times(table)
    return Planner(pipe, settings, condition, prices, prices.slow(), evaluations)


def _table(
    options: argparse.Namespace,
    pipe: Any,
    settings: Settings,
    condition: Condition,
    images: int,
    refresh: bool = False,
) -> CostTable:
    adapter = adapt(pipe.transformer)
    if not isinstance(adapter, PreparedModel):
        raise CalibrationError(
            f"{type(pipe.transformer).__name__} has no table of measured times, by which a speedup is planned: "
            "use --drift or --threshold"
        )
    if adapter.spec().tokens != adapter.spec_at(condition.latent_shape).tokens:
        raise CalibrationError("times are measured at the model's own size, and these images are of another")
    runtime = EAGER if not options.compile else CAPTURED if adapter.device.type == "cuda" else COMPILED
    how = "measured" if refresh else "measured, or from disk"
    print(f"what cells cost, {runtime}, {images} images at once: {how}", flush=True)
    rows = images * (2 if settings.guided else 1)
    return measured(
        adapter, rows, runtime, settings.kernel, window=settings.window, guided=settings.guided, refresh=refresh
    )


def _shares(options: argparse.Namespace, full: float) -> list[float]:
    """Of the uncompressed run's time, what each plan may take."""
    for value in options.latency_ms:
        if value >= full:
            raise CalibrationError(
                f"{value:g} ms are asked for, and nothing has to be compressed for that: a run takes {full:.1f} ms"
            )
    return [1 / value for value in options.speedup] + [value / full for value in options.latency_ms]


def _described(text: str, front: Front, full: float, scheduler: Any) -> str:
    """The finalists, the nearest first; of those of one name the nearest alone."""
    named: dict[str, Tried] = {}
    nearest = sorted(front.finalists, key=lambda one: one.unseen.typical if one.unseen else 0)
    for one in sorted(nearest, key=lambda one: one is not front.best):
        named.setdefault(name_of(one, scheduler), one)
    width = max(34, *map(len, named))
    lines = ["", f"{f'{text}, predicted':<{width + 2}} {'ms':>8}  faster  typical drift  on other noise"]
    for name, one in named.items():
        unseen = "" if one.unseen is None else f"{one.unseen.typical:15.4f}"
        mark = "*" if one is front.best else " "
        times = f"{one.cost:8.1f} {full / one.cost:5.2f} x"
        lines.append(f"{mark} {name:<{width}} {times}  {one.seen.typical:13.4f} {unseen}")
    lines.append(f"* taken, of {len(front.tried)} plans tried and what searches made of the best; drift: relative L2 "
                 "of the final latents, the geometric mean over images")  # fmt: skip
    return "\n".join(lines)


def _write(path: Path, planner: Planner, front: Front, timed: Timed, how: str, shown: Sequence[str]) -> None:
    best, settings = front.best, planner.settings
    assert best.unseen is not None
    name = name_of(best, planner.pipe.scheduler)
    note = (
        f"{NOTE}, {name}: {timed.ms:.1f} ms measured, uncompressed {timed.full_ms:.1f} ms ({how}); "
        f"typical drift {best.unseen.typical:.4f} on other noise"
    )
    plan = best.plan.model_copy(update={"note": note})
    path.parent.mkdir(parents=True, exist_ok=True)
    save(plan, path)
    picture(plan, path.with_suffix(".png"))
    rows = [
        (name, sample(planner.pipe, one, planner.condition, settings.seed, settings.images, settings.kernel, True))
        for name, one in (("full", planner.full), ("plan", plan))
    ]
    found = drift(rows[0][1], rows[1][1])
    grid, steps = path.with_suffix(".images.png"), inference_steps(planner.pipe.scheduler, plan.steps)
    title = f"{1 / timed.share:.2f} x measured, {found.psnr:.1f} dB to the uncompressed images; noise not searched on"
    save_grid(grid, rows, shown, title)
    print(f"\nmeasured {timed.ms:.1f} ms, {1 / timed.share:.2f} x\nplan     {path}  (for num_inference_steps={steps})\n"
          f"picture  {path.with_suffix('.png')}\n"
          f"images   {grid}  ({found.psnr:.1f} dB, SSIM {found.ssim:.4f}, on other noise)")  # fmt: skip


def names(options: argparse.Namespace) -> list[str]:
    """What the plans that are asked for are called."""
    return [f"speedup-{value:g}" for value in options.speedup] + [
        f"latency-{value:g}ms" for value in options.latency_ms
    ]


def check_paths(paths: Sequence[Path]) -> None:
    """Raises CalibrationError, before anything is measured, where a plan would go over another file."""
    for path in paths:
        if path.exists() and not _is_ours(path):
            raise CalibrationError(f"{path} was not written by this command: name another --output")


def _is_ours(path: Path) -> bool:
    try:
        return load(path).note.startswith(NOTE)
    except PlanError:
        return False


@contextmanager
def _bar(text: str) -> Iterator[tuple[Callable[[str, Outcome], None], Callable[[int], None]]]:
    """Told of every run, and of how many are to come."""
    with tqdm(desc=text, total=0, unit="run", dynamic_ncols=True) as bar:

        def on_trial(name: str, outcome: Outcome) -> None:
            bar.set_postfix_str(f"{name}: {outcome.typical:.4f}", refresh=False)
            bar.update()

        def on_more(runs: int) -> None:
            bar.total = bar.n + runs
            bar.refresh()

        yield on_trial, on_more
