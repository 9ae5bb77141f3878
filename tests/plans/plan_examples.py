"""Plans to test with: believable grids without a calibration run, the same on every machine."""

from __future__ import annotations

import random

from plans import Calibration, GuidanceSpec, Method, ModelSpec, Plan, SamplerSpec, TemporalShape, Window
from plans.make import taylorseer
from plans.method import PAPER

DIT_12 = ModelSpec(
    class_name="DiTTransformer2DModel",
    layers=12,
    heads=6,
    head_dim=64,
    tokens=256,
    in_channels=4,
    out_channels=8,
)
DIT_28 = ModelSpec(
    class_name="DiTTransformer2DModel",
    layers=28,
    heads=16,
    head_dim=72,
    tokens=1024,
    in_channels=4,
    out_channels=8,
)
STDIT_28 = ModelSpec(class_name="STDiT2", layers=28, heads=16, head_dim=72, tokens=405, in_channels=4, out_channels=8)
LATTE_28 = ModelSpec(
    class_name="LatteTransformer3DModel",
    layers=28,
    heads=16,
    head_dim=72,
    tokens=1024,
    in_channels=4,
    out_channels=8,
    temporal=TemporalShape(layers=28, frames=16),
)

COND_FIRST = GuidanceSpec(scale=4.0, layout="cond_first")
UNCOND_FIRST = GuidanceSpec(scale=4.5, layout="uncond_first")
NO_GUIDANCE = GuidanceSpec(scale=1.0, layout="none")


def dpm_solver(steps: int) -> SamplerSpec:
    return SamplerSpec(
        class_name="DPMSolverMultistepScheduler",
        settings={
            "algorithm_type": "dpmsolver++",
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "final_sigmas_type": "zero",
            "solver_order": 2,
            "thresholding": False,
            "trained_betas": None,
        },
        timesteps=tuple(float(round(999 - 999 * step / steps)) for step in range(steps)),
    )


def heun(steps: int) -> SamplerSpec:
    """Two calls at every time but the first, as diffusers lists them."""
    times = [round(999 - 999 * step / (steps - 1), 4) for step in range(steps)]
    return SamplerSpec(
        class_name="HeunDiscreteScheduler",
        settings={"beta_schedule": "linear", "use_karras_sigmas": False},
        timesteps=(times[0], *(time for time in times[1:] for _ in range(2))),
    )


def calibration(threshold: float = 0.05, methods: tuple[Method, ...] = PAPER, **changes: object) -> Calibration:
    fields: dict[str, object] = {
        "loss": "mrae",
        "threshold": threshold,
        "methods": methods,
        "search": "algorithm-1",
        "labels": (0, 207, 360, 387, 974, 88, 979, 417),
        "seed": 0,
        "dtype": "float16",
        "device": "NVIDIA A100",
        "kernel": "sdpa",
        "versions": {"torch": "2.5.1", "diffusers": "0.31.0"},
        "created": "2024-11-05T09:30:00+00:00",
    }
    return Calibration(**(fields | changes))  # type: ignore[arg-type]


def synthetic(
    model: ModelSpec, sampler: SamplerSpec, guidance: GuidanceSpec, *, eagerness: float = 1.0, note: str = ""
) -> Plan:
    """A grid with the look of the paper's: full at the start and the end, more reuse in the middle and in late layers.

    Args:
        eagerness: larger compresses more.
    """
    methods = [method for method in PAPER if guidance.layout != "none" or not method.shares_guidance]
    full = Plan.full(model=model, sampler=sampler, guidance=guidance, note=note)
    fields = {name: getattr(full, name) for name in Plan.model_fields} | {
        "calibration": calibration(methods=tuple(methods))
    }
    plan = Plan(**fields)
    for number, site in enumerate(model.sites):
        grid, losses = _grid(methods, len(sampler.timesteps), model.shape(site).layers, eagerness, number)
        plan = plan.with_methods(grid, losses, site=site)
    return plan


def _grid(
    methods: list[Method], steps: int, layers: int, eagerness: float, seed: int
) -> tuple[list[list[Method]], list[list[float | None]]]:
    """Methods and losses of one site."""
    grid, losses = [], []
    for step in range(steps):
        row, row_losses = [], []
        for layer in range(layers):
            wobble = random.Random(seed * 10**6 + step * 1000 + layer).random()
            middle = 4 * (step / steps) * (1 - step / steps)
            ease = eagerness * (0.65 * middle + 0.35 * layer / layers) + 0.5 * (wobble - 0.5)
            rank = len(methods) - 1 - int(max(0.0, min(0.999, ease)) * len(methods)) if step else len(methods) - 1
            method = methods[rank]
            row.append(method)
            row_losses.append(None if method is Method.FULL else round(0.05 * (layer + 1) / layers * wobble, 6))
        grid.append(row)
        losses.append(row_losses)
    return grid, losses


def golden() -> dict[str, Plan]:
    """Name of the golden file -> the plan in it."""
    no_guidance = synthetic(DIT_12, dpm_solver(20), NO_GUIDANCE, note="no classifier-free guidance")
    vocabulary = taylorseer(no_guidance, 3, 2)
    return {
        "forecasts-12x20": vocabulary.skipping([Method.FULL] * 13 + [Method.AST_1] + [Method.FULL] * 6),
        "dit-12x50": synthetic(DIT_12, dpm_solver(50), COND_FIRST),
        "stdit-28x200": synthetic(STDIT_28, dpm_solver(200), COND_FIRST, eagerness=0.8),
        "latte-28x20": synthetic(LATTE_28, dpm_solver(20), UNCOND_FIRST),
        "heun-12x19": synthetic(DIT_12, heun(10), UNCOND_FIRST, note="Heun: two calls at one time"),
        "no-guidance-12x20": no_guidance,
        "full-12x4": Plan.full(
            model=DIT_12,
            sampler=dpm_solver(4),
            guidance=COND_FIRST,
            window=Window(left=32, right=16),
            note="made by hand: nothing compressed, ‘ünïcode’ kept",
        ),
    }


if __name__ == "__main__":  # writes the golden files anew, for a change of the format that is meant
    import sys
    from pathlib import Path

    import plans

    for name, plan in golden().items():
        plans.save(plan, Path(sys.argv[1]) / f"{name}.json")
