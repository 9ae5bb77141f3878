"""How long a calibration takes on this device, with the trials of a plan that was made elsewhere.

On random weights no loss means anything, so the decisions are not the search's: a synthetic plan tells, cell by cell,
which candidates are tried and which is kept. All else is a calibration's own work, losses included.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from calibration.blocks import Blocks, EagerBlocks, PieceBlocks
from calibration.loss import LOSSES
from calibration.probe import Probe
from calibration.replay import ReplayStep
from calibration.settings import CANDIDATES
from ditfastattn.condition import FromLabels
from ditfastattn.errors import DitFastAttnError
from ditfastattn.execute import Context, Contexts
from ditfastattn.kernels import make_kernel
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.models.base import PreparedModel
from ditfastattn.order import Ordering
from ditfastattn.pieces import compiled_pieces
from ditfastattn.ranks import ALONE
from ditfastattn.sampling import Denoiser, Trajectory
from eval.arguments.calibration_time import parser
from eval.geometry import GUIDANCE_SCALE, build
from eval.record import command_line, device_name, record
from eval.synthetic import synthetic_plan
from plans import Method
from plans.files import write_text


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.device = ALONE.device(args.device)
    geometry = build(args.model, args.device, getattr(torch, args.dtype))
    pipe, adapter = geometry.pipe, adapt(geometry.pipe.transformer)
    if not isinstance(adapter, FromLabels):
        raise DitFastAttnError(f"{args.model} is conditioned on prompts; this times calibrations on labels")
    plan = synthetic_plan(geometry.full_plan(args.steps), args.percent)
    denoiser = Denoiser(pipe.transformer, adapter.condition(range(args.labels)), GUIDANCE_SCALE)
    run = Trajectory(denoiser, pipe.scheduler, args.steps, 0, range(args.labels))
    rows = denoiser.rows
    queries = run.latents.new_empty((rows, plan.model.tokens, plan.model.heads, plan.model.head_dim))
    context = Context(make_kernel(args.kernel, queries, plan.window), plan.window, Layout(plan.guidance.layout))
    contexts: Contexts = {"attn": context}
    ordering = Ordering("raster", plan.window, adapter.per_image)
    blocks: Blocks = EagerBlocks(adapter, contexts)
    if not args.eager:
        assert isinstance(adapter, PreparedModel)  # every labelled model here is
        latents = run.latents.new_empty((rows, *run.latents.shape[1:]))
        blocks = PieceBlocks(adapter, contexts, compiled_pieces(), adapter.read_call((latents,), denoiser.arguments))
    loss, trials = LOSSES["mrae"], 0
    begin = time.perf_counter()
    with Probe(adapter, contexts, ordering, residuals=True, blocks=blocks) as probe:
        for index, timestep in enumerate(tqdm(plan.sampler.timesteps, unit="step")):
            blocks.begin_step(timestep)
            if index == 0:
                output = probe.commit(lambda: run.predict(0), plan.methods[0])
            else:
                step = ReplayStep(probe, lambda index=index: run.predict(index))  # type: ignore[misc]
                reference = step.reference()
                for layer, chosen in enumerate(plan.methods[index]):
                    for candidate in CANDIDATES[: CANDIDATES.index(chosen) + 1 if chosen is not Method.FULL else None]:
                        float(loss(reference, step.attempt(layer, candidate)))
                        trials += 1
                    step.keep(layer, chosen)
                output = step.output()
            run.advance(index, output)
    seconds = time.perf_counter() - begin
    plain = plan.layers * (trials + 2 * (plan.steps - 1) + 1)
    result = {
        "what": "a calibration's work with the trials of a synthetic plan"
        + (", random weights" if geometry.random_weights else ""),
        "model": Path(args.model).name,
        "labels": args.labels,
        "steps": args.steps,
        "compiled": not args.eager,
        "kernel": context.kernel.name,
        "seconds": round(seconds, 1),
        "trials": trials,
        "block_runs": probe.block_runs,
        "plain_block_runs": plain,
        **record(command_line("calibration-time", argv), device_name(args.device), args.dtype),
    }
    print(
        f"{seconds:.1f} s for {trials} trials: {probe.block_runs} block runs, "
        f"{100 * probe.block_runs / plain:.0f} % of Algorithm 1's without replay"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "calibration_time.json", json.dumps(result, indent=1) + "\n")
