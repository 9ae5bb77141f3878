"""How far the guided prediction moves when outputs of layers are off: of all at once, to first order.

An output off by d moves the prediction P by J d, J the Jacobian of all that follows. For v of independent standard
normal numbers E <v, J d>^2 = |J d|^2, as in Hutchinson's estimator of a trace (1989), and <v, J d> is <J^T v, d>: one
backward pass gives J^T v of every output, and with it the error of whatever could stand in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.parts import Parts, Tap

BACKWARD = 2  # forward runs that a backward pass counts as


@dataclass(frozen=True)
class Response:
    """Of one model call on B images, in ``branches`` branches of guidance.

    Attributes:
        gradients: of every part, (K, rows, N, C): J^T v of K random v; rows are branch by branch, image by image.
        images: B.
    """

    gradients: Sequence[Tensor]
    images: int
    branches: int

    def along(self, part: int, off: Tensor) -> Tensor:
        """<v, J d> of every v and image, (K B,) float32, where the part's output (rows, N, C) is off by d = ``off``.

        Those of several parts add up, signs and all; the mean of the squares of K, summed over images, is |J d|^2.
        """
        found = torch.einsum("krnc,rnc->kr", self.gradients[part].float(), off.float())
        return found.unflatten(1, (self.branches, self.images, -1)).sum((1, 3)).flatten()


class _Offset:
    """Adds zeros that can be derived by."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self.offs: list[Tensor] = []

    def attention(self, part: int, output: Tensor, q: Tensor, k: Tensor, v: Tensor, core: Tensor) -> Tensor:
        shown = (tensor.detach() for tensor in (output, q, k, v, core))
        self._tap.attention(part, *shown)
        return self._off(output)

    def follower(self, part: int, output: Tensor) -> Tensor:
        self._tap.follower(part, output.detach())
        return self._off(output)

    def _off(self, output: Tensor) -> Tensor:
        self.offs.append(torch.zeros_like(output, requires_grad=True))
        return output + self.offs[-1]


def respond(
    parts: Parts,
    predict: Callable[[], Tensor],
    guided: Callable[[Tensor], Tensor],
    tap: Tap,
    projections: int,
    generator: torch.Generator,
) -> tuple[Tensor, Response]:
    """One model call, every output shown to ``tap``, and its response.

    Args:
        guided: the guided prediction (B, C, h, w) from the model output.
        projections: K, of random v that are drawn by ``generator``, on the CPU.
    """
    offset = _Offset(tap)
    with torch.enable_grad(), _frozen(parts.probe.adapter.model):
        output = parts.call(predict, offset)
        prediction = guided(output)
        found = []
        for k in range(projections):
            v = torch.randn(prediction.shape, generator=generator).to(prediction)
            parts.probe.block_runs += BACKWARD * parts.probe.layers
            found.append(torch.autograd.grad((v * prediction).sum(), offset.offs, retain_graph=k + 1 < projections))
    gradients = [torch.stack(of_part) for of_part in zip(*found, strict=True)]
    images = len(prediction)
    return output.detach(), Response(gradients, images, len(output) // images)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients of weights, whose graph would keep more activations."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
