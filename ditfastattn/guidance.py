"""Reading the guidance off a run: the sampler must be handed uncond + s (cond - uncond) with the plan's s."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ditfastattn.capture import Replayed
from ditfastattn.layout import Layout
from ditfastattn.watch import Watch
from plans import GuidanceSpec, PlanMismatch

# Of the magnitude that is added up. Rounding moves the sum by about a fifth of an eps (of the norm), whatever the order
# of the operations.
_ROUNDING = 1.0
_FLOOR = 1e-5


class GuidanceCheck:
    """Every step of the sampler must be given the plan's guidance of the model's last output.

    Args:
        captured: what is compared is computed by a graph.
    """

    def __init__(self, guidance: GuidanceSpec, captured: bool = False) -> None:
        self._scale, self._layout = guidance.scale, Layout(guidance.layout)
        self._products: Callable[[Tensor, Tensor], Tensor] = Replayed(self._compared) if captured else self._compared
        self._output: Tensor | None = None  # until the sampler steps with it

    @property
    def awaits(self) -> bool:
        """Whether the sampler's next step is to be checked."""
        return self._output is not None

    def expect(self, output: Tensor) -> None:
        """``output`` (2B, C, ...) is what the sampler's next step must follow from; without guidance any does."""
        self._output = output if self._layout is not Layout.NONE else None

    def forget(self) -> None:
        """The run is over."""
        self._output = None

    def close(self) -> None:
        """Frees everything; there is nothing more to check."""
        self._output, self._products = None, self._compared

    def check(self, given: Tensor, watch: Watch) -> None:
        """Raises PlanMismatch, now or when ``watch`` learns it, if what the sampler is ``given`` is guided otherwise.

        Args:
            given: (B, C, ...), or more rows, of which the first B are read.
        """
        assert self._output is not None
        output, self._output = self._output, None
        eps = max(torch.finfo(tensor.dtype).eps for tensor in (output, given))
        watch.post(self._products(output, given), partial(judge_guidance, self._scale, eps))

    def _compared(self, output: Tensor, given: Tensor) -> Tensor:
        conditional, half = self._layout.conditional_rows(len(output)), len(output) // 2
        cond, uncond = output[conditional], output[half:] if conditional.start == 0 else output[:half]
        return guidance_products(cond, uncond, given[:half])


def guidance_products(cond: Tensor, uncond: Tensor, guided: Tensor) -> Tensor:
    """What :func:`judge_guidance` needs, computed where the tensors are, in few operations.

    Only the first three channels are read: the official DiT sampler guides three of four, diffusers' pipeline all.

    Args:
        cond, uncond, guided: (B, C, h, w), C >= 1; ``guided`` is what the sampler was given.

    Returns:
        (9,) float64: the scalar products of uncond, cond and guided with each other, row by row.
    """
    vectors = torch.stack([t[:, :3].double() for t in (uncond, cond, guided)]).flatten(1)  # (3, B * 3 * h * w)
    return (vectors @ vectors.T).flatten()


def judge_guidance(scale: float, eps: float, products: list[float]) -> None:
    """Refuses a run whose sampler is not handed uncond + scale (cond - uncond), to the rounding of the dtypes.

    Where the branches hardly differ (at the first steps) another scale cannot be told from rounding in half precision;
    it can a few steps later. Scalar products in float64 lose half of their digits in the differences taken here, which
    leaves 1e-8 of the magnitude, far below what is allowed.

    Args:
        scale: the plan's guidance scale.
        eps: of the coarser of the dtypes that the guidance was computed in.
        products: of :func:`guidance_products`.

    Raises:
        PlanMismatch: another scale, or something else altogether.
    """
    uu, uc, ug, _, cc, cg, _, _, gg = products
    length = cc - 2 * uc + uu  # |direction|^2, direction = cond - uncond
    moved = gg - 2 * ug + uu  # |given - uncond|^2
    along = cg - uc - ug + uu  # (given - uncond) . direction
    allowed = (_ROUNDING * eps + _FLOOR) * (_root(uu) + scale * _root(length))
    error = _root(moved - 2 * scale * along + scale * scale * length)
    if error <= allowed or not allowed > 0:
        return
    implied = along / length if length > 0 else math.inf
    unexplained = _root(moved - along * implied) if length > 0 else math.inf
    if unexplained <= allowed:
        raise PlanMismatch([f"guidance scale: the plan has {scale:g}, this run {implied:.3g}"])
    raise PlanMismatch(
        [
            f"guidance: the plan has uncond + {scale:g} (cond - uncond), this run hands its sampler something else "
            "(rescaled or changing guidance?); to leave guidance unchecked apply the plan to the bare transformer"
        ]
    )


def _root(square: float) -> float:
    """Of what is no negative number but for rounding; NaN stays NaN."""
    return math.sqrt(square) if not square < 0 else 0.0
