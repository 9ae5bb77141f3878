"""Reading the guidance off a run: the sampler must be handed uncond + s (cond - uncond) with the plan's s."""

import torch
from torch import Tensor

# Of the magnitude that is added up. Rounding moves the sum by about a fifth of an eps (of the norm), whatever the order
# of the operations.
_ROUNDING = 1.0
_FLOOR = 1e-5


def guidance_fault(cond: Tensor, uncond: Tensor, guided: Tensor, scale: float) -> str | None:
    """Why ``guided`` is not uncond + scale (cond - uncond), or None if it is, to the rounding of the dtypes.

    Only the first three channels are read: the official DiT sampler guides three of four, diffusers' pipeline all.
    Where the branches hardly differ (at the first steps) another scale cannot be told from rounding in half precision;
    it can a few steps later.

    Args:
        cond, uncond, guided: (B, C, h, w), C >= 1; ``guided`` is what the sampler was given.
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
    values = torch.stack([error, allowed, implied, unexplained]).tolist()  # one wait for the device
    if values[0] <= values[1] or not values[1] > 0:
        return None
    if values[3] <= values[1]:
        return f"guidance scale: the plan has {scale:g}, this run {values[2]:.3g}"
    return (
        f"guidance: the plan has uncond + {scale:g} (cond - uncond), this run hands its sampler something else "
        "(rescaled or changing guidance?); to leave guidance unchecked apply the plan to the bare transformer"
    )
