"""``python -m eval sample``: exactly n images or videos, with a plan or without, on any number of processes, resumed
after a kill; what they depend on is in ``run.json``."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from tqdm import tqdm

import ditfastattn
from calibration.subjects import sampled_by
from ditfastattn.batch import like_queries
from ditfastattn.kernels import CHOSEN, settled
from ditfastattn.models import adapt
from ditfastattn.models.base import prepared
from ditfastattn.pipelines import load_pipeline, usual_schedule
from ditfastattn.ranks import Ranks, start
from eval.arguments.sample import parser
from eval.sample_batches import Artist
from eval.sample_folder import RunFolder, held, read_record
from eval.sample_settings import (
    SampleError,
    Schedule,
    check_plan,
    check_steps,
    describe,
    differences,
    file_format,
    full_plan,
    sampler_name,
    schedule,
)
from eval.sample_subjects import read_texts, subjects_of
from plans import Plan, load
from plans.macs import plan_macs

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    with start() as ranks:
        sample(parser().parse_args(arguments), "python -m eval sample " + shlex.join(arguments), ranks)


def sample(options: argparse.Namespace, command: str, ranks: Ranks) -> None:
    """One command's images.

    Raises:
        SampleError: settings that make no run, another run's folder, or processes that would draw other images.
        PlanError: no plan, one that does not fit, or a file that cannot be written.
        LoadError: the model cannot be loaded.
        RankError: a device that is not there, or another rank has ended.
    """
    for name, value in (("--n", options.n), ("--batch", options.batch), ("--steps", options.steps)):
        if value is not None and value < 1:
            raise SampleError(f"{name} must be at least 1, got {value}")
    plan = load(options.plan) if options.plan else None
    sampler, usual_steps = usual_schedule(options.model, sampler_name(options.sampler, plan))
    if options.prompts is not None:
        read_texts(options.prompts)  # whatever is wrong there is told before a model is loaded
    device = ranks.device(options.device)
    if device == "cpu":
        torch.set_num_threads(1)  # more of them round otherwise; more processes do not
    with held(options.out) if ranks.first else contextlib.nullcontext():
        recorded = read_record(options.out) if ranks.first else None
        dtype = getattr(torch, options.dtype)
        pipe = load_pipeline(
            options.model, sampler=sampler, dtype=dtype, device=device, vae=options.vae,
            text_encoder=options.text_encoder,
        )  # fmt: skip
        usual = Schedule(sampler, usual_steps, sampled_by(pipe.transformer).usual_guidance)
        wanted = schedule(options.steps, options.guidance, plan, usual)
        check_steps(pipe, wanted.steps)
        video = adapt(pipe.transformer).spec().temporal is not None
        options.format = file_format(options.format, video)
        if options.compile:
            prepared(adapt(pipe.transformer))
        subjects = subjects_of(pipe, options, plan)
        shape = subjects.latent_shape
        if plan is not None:
            check_plan(pipe, plan, wanted, shape)
        usual_batch = (1 if device == "cpu" else 4) if video else (8 if device == "cpu" else 32)
        batch = min(options.batch or usual_batch, options.n)
        full = full_plan(pipe, wanted, shape)
        kernel = ranks.broadcast(_kernel(options, pipe, plan, full, (batch, *shape), recorded) if ranks.first else None)
        if plan is None and kernel and not options.compile:
            ditfastattn.use_kernel(pipe, kernel).remove()  # whether it can is told before a folder is begun
        given = {key: getattr(options, key) for key in ("n", "seed", "dtype", "compile", "format", "latents")}
        graphs = options.compile and device != "cpu"
        settings = describe(
            pipe, plan, wanted, shape, device, **given, **subjects.settings, batch=batch, kernel=kernel, graphs=graphs
        )
        _check_equal(ranks.gather(settings))
        folder, what = RunFolder(options.out, settings, shape), "videos" if video else "images"
        if ranks.first:
            macs = round(plan_macs(plan).percent, 3) if plan else 100.0
            notes = {"model": options.model, "command": command, "attention_macs": macs, **subjects.notes(options.n)}
            folder.begin(notes, plan, subjects.labels(options.n))
        pending = ranks.broadcast(folder.pending() if ranks.first else [])
        folder.join()
        if pending or not ranks.broadcast(folder.is_finished()):
            artist = Artist(pipe, subjects.condition, wanted.steps, wanted.guidance, options.seed)
            with _following(pipe, plan, full, kernel, options.compile, graphs):
                throughput = _draw_all(artist, folder, pending, ranks, what)
            if ranks.first:
                folder.finish(throughput, patient=ranks.world > 1)
            if throughput:
                seconds, speed = throughput["seconds"], throughput["images_per_s"]
                print(f"{throughput['images']} {what} in {seconds:.1f} s, {speed:.3g} {what}/s")
        print(f"{options.out} holds {options.n} {what}")


def _kernel(
    options: argparse.Namespace, pipe: Any, plan: Plan | None, full: Plan, latents: tuple[int, ...], recorded: Any
) -> str | None:
    """The kernel by a name that gives every process the same one; None is the model's own attention.

    Args:
        latents: the shape of a batch's.
        recorded: of an earlier command of this run; what it chose stays chosen.
    """
    if plan is None and options.kernel == "auto":
        return "sdpa" if options.compile else None
    earlier = recorded.get("kernel") if recorded and options.kernel == "auto" else None
    if isinstance(earlier, str) and (earlier == "sdpa" or earlier.startswith(CHOSEN)):
        return earlier
    parameter = next(pipe.transformer.parameters())
    rows = latents[0] * (2 if full.guidance.scale != 1 else 1)
    batch = parameter.new_empty(1).expand(rows, *latents[1:])
    return settled(options.kernel, like_queries(full, "attn", batch, parameter.dtype), (plan or full).window)


def _following(
    pipe: Any, plan: Plan | None, full: Plan, kernel: str | None, compile: bool, graphs: bool
) -> contextlib.AbstractContextManager[Any]:
    if plan is None and not compile:
        return ditfastattn.use_kernel(pipe, kernel) if kernel else contextlib.nullcontext()
    return ditfastattn.apply(pipe, plan or full, kernel=kernel or "auto", compile=compile, graphs=graphs)


def _check_equal(everyone: Sequence[dict[str, Any]]) -> None:
    """Raises SampleError where a rank would draw other images than rank 0: another GPU, other versions or weights."""
    for rank, settings in enumerate(everyone):
        found = differences(everyone[0], settings)
        if found:
            listed = "".join(f"\n  - {line}" for line in found)
            raise SampleError(f"rank {rank} would not draw what rank 0 draws; make the hosts alike:{listed}")


def _draw_all(
    artist: Artist, folder: RunFolder, pending: Sequence[int], ranks: Ranks, what: str
) -> dict[str, Any] | None:
    """Draws this rank's share of the pending batches; what rank 0 measured of all ranks together, if there were any."""
    ranks.barrier()
    began = time.monotonic()
    images = sum(len(folder.batches.kept(number)) for number in pending)
    first_s, mine = 0.0, 0
    done = folder.batches.n - images
    with tqdm(
        total=folder.batches.n, initial=done, unit=f" {what}", smoothing=0, bar_format=_BAR, disable=not ranks.first
    ) as bar:

        def show(written: int) -> None:
            bar.update(done + ranks.count(written) - bar.n)

        with _Writer(folder) as writer:
            for number in pending[ranks.rank :: ranks.world]:
                show(writer.put(number, *artist.draw(folder.batches.drawn(number))))
                mine += 1
                first_s = first_s or time.monotonic() - began
            show(writer.wait())
        own_s = time.monotonic() - began
        ranks.barrier()
        show(0)
    if not pending:
        return None
    seconds = time.monotonic() - began
    later = (mine - 1) * folder.batches.size * ranks.world / (own_s - first_s) if mine > 1 else None
    return {
        "images": images,
        "seconds": round(seconds, 3),
        "images_per_s": round(images / seconds, 4),
        "images_per_s_after_first_batch": round(later, 4) if later else None,  # without preparing; of rank 0's batches
        "processes": ranks.world,
    }


class _Writer:
    """Writes a batch while the next is drawn."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[int] | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def put(self, number: int, latents: torch.Tensor, images: torch.Tensor) -> int:
        """How many images the batch before had; raises what writing it raised."""
        written = self.wait()
        self._last = self._pool.submit(self._folder.write, number, latents, images)
        return written

    def wait(self) -> int:
        last, self._last = self._last, None
        return last.result() if last else 0
