"""Where a prepared step's time goes: each part of a block timed alone, and added up as a plan's cells need it."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ditfastattn.cache import Rows, liveness
from ditfastattn.cost.timing import captured, interleaved
from ditfastattn.kernels import make_kernel
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.models.base import prepared
from ditfastattn.pieces import compiled_pieces
from ditfastattn.prepared import BlockInputs, JointWeights
from plans import Plan, Window

# In the order of a bar, from its foot. All but the last are what a plan changes: self-attention.
PARTS = (
    "norm, q k v",
    "full attention",
    "window + residual",
    "residuals stored",
    "out-projection",
    "rest of the blocks",
)
ATTENTION = PARTS[:5]
WHOLE, HALF = "", ", half"

Times = Mapping[str, float]  # microseconds of a part of one block; the part's name, with ", half" for half of the rows


@torch.no_grad()
def part_times(transformer: Any, batch: int, window: Window, layout: Layout, kernel: str, repeats: int = 9) -> Times:
    """Median microseconds of every part of the first block, compiled; on a GPU captured, so without launching.

    Args:
        batch: rows of a call, both guidance branches counted.
    """
    adapter = prepared(adapt(transformer))
    model, block, pieces = adapter.spec(), adapter.blocks[0], compiled_pieces()
    call = adapter.read_call((), adapter.example(batch, model.tokens))
    hidden = pieces.embed(adapter, call.latents, None)  # (B, N, C)
    timesteps = torch.as_tensor(call.timestep).flatten()[:1]
    modulation = adapter.conditioning(timesteps, call).blocks[0, 0].clone()
    joint = JointWeights(block.joint_weights()).tensors
    inputs = BlockInputs(block, modulation, adapter.context(call), joint)
    chosen = make_kernel(kernel, hidden.new_empty((batch, model.tokens, model.heads, model.head_dim)), window)

    runs: dict[str, Callable[[], object]] = {}
    sizes = {WHOLE: slice(0, batch)} | ({HALF: layout.conditional_rows(batch)} if layout is not Layout.NONE else {})
    for size, rows in sizes.items():
        q, k, v = inputs.qkv(pieces, hidden, rows)
        core = chosen.full(q, k, v)
        other, out = torch.randn_like(core), torch.empty_like(core)
        projected = block.project(core)
        parts: list[Callable[[], object]] = [
            partial(inputs.qkv, pieces, hidden, rows),
            partial(chosen.full, q, k, v),
            partial(chosen.window, q, k, v, window, other),
            partial(chosen.residual, q, k, v, core, window, out),
            partial(block.project, core),
            partial(pieces.finish, block, hidden, projected, inputs.modulation, inputs.shared),
        ]
        runs |= {part + size: run for part, run in zip(PARTS, parts, strict=True)}
    for run in runs.values():
        run()
    if hidden.is_cuda:
        runs = {name: captured(run) for name, run in runs.items()}
    return interleaved(runs, hidden.device, repeats, launches=20 if hidden.is_cuda else 1)


def has_parts(plan: Plan) -> bool:
    """Whether a plan's steps are made of PARTS alone: no forecasts, MLPs of their own, or skipped steps."""
    return plan.sites.keys() == {"attn"} and not any(method.forecasts for row in plan.methods for method in row)


def step_parts(plan: Plan, times: Times) -> dict[str, float]:
    """Milliseconds of each of PARTS in a step of ``plan``, averaged over its steps."""
    calls: Counter[str] = Counter()
    for layer in range(plan.layers):
        stored: Rows = Rows.WHOLE_BATCH
        for cell in liveness(plan.column(layer)):
            method = cell.method
            size = HALF if method.shares_guidance else WHOLE
            if not method.reuses_output:
                calls[f"norm, q k v{size}"] += 1
                calls[f"{'window + residual' if method.windowed else 'full attention'}{size}"] += 1
                calls[f"out-projection{size}"] += 1
                stored = Rows.CONDITIONAL_HALF if method.shares_guidance else Rows.WHOLE_BATCH
            if cell.store_residual:
                calls[f"residuals stored{HALF if cell.store_residual is Rows.CONDITIONAL_HALF else WHOLE}"] += 1
            calls[f"rest of the blocks{HALF if stored is Rows.CONDITIONAL_HALF else WHOLE}"] += 1
    return {
        part: sum(calls[part + size] * times[part + size] for size in (WHOLE, HALF) if calls[part + size])
        / (1000 * plan.steps)
        for part in PARTS
    }
