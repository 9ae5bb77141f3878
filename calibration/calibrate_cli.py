"""``python -m calibration --threshold`` and ``--drift``, from loading the pipeline to the last picture."""

import argparse
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from calibration.arguments import (
    loss_of,
    parse_above,
    parse_budget,
    parse_methods,
    parse_window,
)
from calibration.calibrate import Result, calibrate, package_versions
from calibration.command import opened, plan_paths, settle_schedule
from calibration.drift import Drift, Images, drift, sample
from calibration.errors import CalibrationError
from calibration.journal import Journal, trace_path
from calibration.loss import DRIFT
from calibration.picture import save_grid
from calibration.planner_cli import check_paths, plan_speedups
from calibration.planner_cli import names as plan_names
from calibration.progress import bars
from calibration.prompts import choose_prompts
from calibration.report import describe, summary_row, write_summary
from calibration.saving import refuse_foreign, write
from calibration.sensitivity import Sensitivity
from calibration.settings import CANDIDATES, Settings, parse_threshold
from calibration.subjects import condition_of, release_encoders
from ditfastattn.condition import Condition
from ditfastattn.cost import PlanTime, predict
from ditfastattn.decode import decode
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.models.base import PreparedModel
from ditfastattn.ranks import Ranks
from plans import Plan
from plans.macs import plan_macs


def write_calibrated(options: argparse.Namespace, arguments: Sequence[str], ranks: Ranks) -> int:
    """Plans by thresholds or drifts, or by time, as the parsed ``arguments`` ask for them."""
    timed = bool(options.speedup or options.latency_ms)
    if timed:
        _check_timed(options, ranks)
    else:
        _check_untimed(options)
    asked, names = ([], plan_names(options)) if timed else _asked(options)
    settle_schedule(options)
    window, temporal_window = parse_window(options.window), parse_window(options.temporal_window)
    methods = parse_methods(options.methods)
    device = ranks.device(options.device)
    paths = plan_paths(options, names, others=options.advise)
    if timed:
        check_paths(paths)
    if options.prompts is not None:
        choose_prompts(options.prompts, options.n_calib)  # whatever is wrong there is told before a model is loaded
    for path in paths if ranks.first and not timed else ():
        refuse_foreign(path)
    pipe, subjects, common = opened(
        options,
        device,
        loss=loss_of(options),
        methods=methods,
        window=window,
        temporal_window=temporal_window,
        token_order=options.token_order,
        search=options.search,
        kernel=options.kernel,
        compile=options.compile,
    )
    all_settings = [
        replace(common, budget=value) if options.drift else replace(common, threshold=value) for _, value in asked
    ]
    condition = condition_of(pipe, common)
    release_encoders(pipe)
    shares = f", over {ranks.world} processes" if ranks.world > 1 else ""
    print(f"{options.model} on {device} in {options.dtype}: {options.steps} {options.sampler} steps{shares}")
    print(f"guidance {common.guidance_scale:g}, calibrated on {subjects}")
    if timed:
        return plan_speedups(options, paths, pipe, common, condition, subjects)

    references: list[Images] = []
    rows = []
    measured: tuple[Sensitivity, ...] = ()  # the same for every threshold and budget
    for (text, _), settings, path in zip(asked, all_settings, paths, strict=True):
        if not ranks.first:  # what follows a search is one process's work
            measured = calibrate(pipe, settings, ranks=ranks, condition=condition, sensitivities=measured).sensitivities
            continue
        journal = Journal(trace_path(path), _header(pipe, options, settings, device), options.resume)
        with bars(f"threshold {text}") as watch:
            result = calibrate(pipe, settings, journal, None, ranks, condition, watch, measured)
        measured = result.sensitivities
        if not references:  # the uncompressed images are the same for every threshold
            references = [_sample(pipe, result.plan, settings, condition, unseen, False) for unseen in (False, True)]
        compressed = [
            Images(result.latents, decode(pipe.vae, result.latents)),
            _sample(pipe, result.plan, settings, condition, True, True),
        ]
        seen, unseen = (drift(a, b) for a, b in zip(references, compressed, strict=True))
        _write(path, result, journal, references[0], compressed[0], subjects.names, seen)
        print(describe(result, seen, unseen, _predicted(pipe, result)))
        print(f"\nplan     {path}\npicture  {path.with_suffix('.png')}\nimages   {_grid_path(path)}\n"
              f"trace    {trace_path(path)}  (python -m calibration explain {path} --layer L --step S)\n")  # fmt: skip
        rows.append(summary_row(text, result, seen, unseen))
    if len(rows) > 1:
        summary = paths[0].parent / "summary.json"
        plan_device = result.plan.calibration.device if result.plan.calibration else device
        command = "python -m calibration " + shlex.join(arguments)
        write_summary(summary, command, plan_device, options.dtype, rows)
        print(f"{'drift' if options.drift else 'threshold':>9}  attention MACs  latents rel. L2      PSNR      SSIM")
        for row in rows:
            decibels = "equal" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
            print(f"{row['threshold']:>9}  {row['attention_macs']:12.1f} %  {row['latent_rel_l2']:15.4f}  {decibels:>8}"
                  f"  {row['ssim']:8.4f}")  # fmt: skip
        print(f"\nsummary  {summary}")
    return 0


def _asked(options: argparse.Namespace) -> tuple[list[tuple[str, float]], list[str]]:
    """The drifts or thresholds, as texts and numbers, and what their plans are called."""
    if options.drift:
        asked = [(text, parse_budget(text)) for text in options.drift]
        return asked, [f"within-{value:g}" for _, value in asked]
    asked = [(text, parse_threshold(text)) for text in options.threshold]
    return asked, [f"{loss_of(options)}-{value:g}" for _, value in asked]


def _check_timed(options: argparse.Namespace, ranks: Ranks) -> None:
    """What goes with a speedup, and what does not; numbers in the place of texts."""
    options.speedup = parse_above(options.speedup, "speedup", 1.0)
    options.latency_ms = parse_above(options.latency_ms, "number of milliseconds", 0.0)
    for given, name in (
        (options.loss not in (None, DRIFT), "--loss"),
        (options.resume, "--resume"),
        (options.search != "replay", "--search"),
        (parse_methods(options.methods) != CANDIDATES, "--methods"),
        (ranks.world > 1, "torchrun"),
    ):
        if given:
            raise CalibrationError(f"{name} does not go with a plan by time: leave it out")
    if options.batch is not None and options.batch < 1:
        raise CalibrationError(f"a batch has at least one image, got --batch {options.batch}")
    if options.evaluations is not None and options.evaluations < 0:
        raise CalibrationError(f"--evaluations is a number of runs, 0 or more, got {options.evaluations}")


def _check_untimed(options: argparse.Namespace) -> None:
    """What only a search by time has."""
    for given, name in ((options.evaluations, "--evaluations"), (options.batch, "--batch")):
        if given is not None:
            raise CalibrationError(f"{name} is for plans by time: give it with --speedup or --latency-ms")


def _sample(pipe: Any, plan: Plan, settings: Settings, condition: Condition, unseen: bool, compressed: bool) -> Images:
    first = settings.images if unseen else 0
    return sample(pipe, plan, condition, settings.seed, first, settings.kernel, compressed)


def _predicted(pipe: Any, result: Result) -> PlanTime | None:
    """From block times that were measured before (python -m eval cost); a calibration measures none."""
    record = result.plan.calibration
    assert record is not None
    rows = record.images * (1 if result.plan.guidance.layout == Layout.NONE.value else 2)
    adapter = adapt(pipe.transformer)
    return predict(adapter, result.plan, record.kernel, rows) if isinstance(adapter, PreparedModel) else None


def _write(
    path: Path, result: Result, journal: Journal, full: Images, compressed: Images, names: Sequence[str], seen: Drift
) -> None:
    write(path, result, journal)
    percent = plan_macs(result.plan).percent
    distance = f"{seen.psnr:.1f} dB to" if math.isfinite(seen.psnr) else "equal to"
    title = f"{percent:.0f} % of attention MACs, {distance} the uncompressed images"
    save_grid(_grid_path(path), [("full", full), ("compressed", compressed)], names, title)


def _grid_path(path: Path) -> Path:
    return path.with_suffix(".images.png")


def _header(pipe: Any, options: argparse.Namespace, settings: Settings, device: str) -> dict[str, Any]:
    given: dict[str, Any] = {name: getattr(options, name) for name in ("model", "sampler", "dtype")}
    order = [place.site for place in adapt(pipe.transformer).places]
    if len(set(order)) > 1:
        given["sites"] = order  # of the layers that a decision counts
    return {**given, "device": torch.device(device).type, "versions": package_versions(), **settings.as_json()}
