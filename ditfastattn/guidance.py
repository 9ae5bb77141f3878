"""Reading the guidance scale off a run: the sampler is handed uncond + s (cond - uncond), so s can be solved for."""

from torch import Tensor

# Rounding of half precision moves the estimate by well under this; a scale that differs by less is not another plan.
RELATIVE_TOLERANCE = 0.02


def implied_scale(cond: Tensor, uncond: Tensor, guided: Tensor) -> float | None:
    """The s that best explains ``guided`` = uncond + s (cond - uncond), by least squares in float64.

    Only the first three channels are read: the official DiT sampler guides three of four, diffusers' pipeline all.

    Args:
        cond, uncond, guided: (B, C, h, w), C >= 1.

    Returns:
        s, or None where the branches are equal or ``guided`` is no such combination (rescaled guidance, say).
    """
    direction = (cond[:, :3].double() - uncond[:, :3].double()).flatten()
    moved = (guided[:, :3].double() - uncond[:, :3].double()).flatten()
    length = direction.dot(direction)
    scale = moved.dot(direction) / length
    unexplained = (moved - scale * direction).norm() / moved.norm()
    values = [float(scale), float(unexplained)]  # NaN where the branches are equal
    return values[0] if values[1] < 0.1 else None


def same_scale(planned: float, measured: float) -> bool:
    return abs(planned - measured) <= RELATIVE_TOLERANCE * max(1.0, abs(planned))
