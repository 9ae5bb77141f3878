"""Reading the guidance off a run: the sampler must be handed uncond + s (cond - uncond) with the plan's s."""

import torch
from torch import Tensor

from plans import PlanMismatch

# Of the magnitude that is added up. Rounding moves the sum by about a fifth of an eps (of the norm), whatever the order
# of the operations.
_ROUNDING = 1.0
_FLOOR = 1e-5


def guidance_numbers(cond: Tensor, uncond: Tensor, guided: Tensor, scale: float) -> Tensor:
    """What :func:`judge_guidance` needs, computed where the tensors are.

    Only the first three channels are read: the official DiT sampler guides three of four, diffusers' pipeline all.

    Args:
        cond, uncond, guided: (B, C, h, w), C >= 1; ``guided`` is what the sampler was given.

    Returns:
        (4,) float64: distance from uncond + scale (cond - uncond), what rounding allows, the scale that explains
        ``guided`` best, the distance from that.
    """
    uncond, cond, given = uncond[:, :3], cond[:, :3], guided[:, :3]
    eps = max(torch.finfo(t.dtype).eps for t in (uncond, given))
    u = uncond.double().flatten()
    direction = cond.double().flatten() - u
    moved = given.double().flatten() - u
    length = direction.norm()
    allowed = (_ROUNDING * eps + _FLOOR) * (u.norm() + scale * length)
    implied = moved.dot(direction) / length.square()
    error, unexplained = (moved - scale * direction).norm(), (moved - implied * direction).norm()
    return torch.stack([error, allowed, implied, unexplained])


def judge_guidance(scale: float, numbers: list[float]) -> None:
    """Refuses a run whose sampler is not handed uncond + scale (cond - uncond), to the rounding of the dtypes.

    Where the branches hardly differ (at the first steps) another scale cannot be told from rounding in half precision;
    it can a few steps later.

    Raises:
        PlanMismatch: another scale, or something else altogether.
    """
    error, allowed, implied, unexplained = numbers
    if error <= allowed or not allowed > 0:
        return
    if unexplained <= allowed:
        raise PlanMismatch([f"guidance scale: the plan has {scale:g}, this run {implied:.3g}"])
    raise PlanMismatch(
        [
            f"guidance: the plan has uncond + {scale:g} (cond - uncond), this run hands its sampler something else "
            "(rescaled or changing guidance?); to leave guidance unchecked apply the plan to the bare transformer"
        ]
    )
