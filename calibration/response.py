"""How far the guided prediction moves when the outputs of layers are off: of all layers at once, to first order.

A layer's output off by d moves the prediction P by J d, J the Jacobian of all that follows. For v of independent
standard normal numbers E <v, J d>^2 = |J d|^2, as in Hutchinson's estimator of a trace (1989), and <v, J d> = <J^T v, d>:
one backward pass gives J^T v of every layer, and with it the error of whatever could stand in a layer's place there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibration.probe import Probe

BACKWARD = 2  # forward runs that a backward pass counts as

Output = Callable[..., tuple[Any, Tensor]]
"""``(layer, hidden, *args, **kwargs)`` to the block's state and its attention output (rows, N, C)."""


@dataclass(frozen=True)
class Response:
    """Of one model call on B images, in ``branches`` branches of guidance.

    Attributes:
        gradients: of every layer, (K, rows, N, C): J^T v of K random v; rows are branch by branch, image by image.
        scale: |P|^2, summed over the images.
    """

    gradients: Sequence[Tensor]
    scale: float
    images: int
    branches: int

    def error(self, layer: int, off: Tensor) -> float:
        """Squared relative L2 of the guided prediction where the layer's output (rows, N, C) is off by ``off``."""
        along = torch.einsum("krnc,rnc->kr", self.gradients[layer].float(), off.float())
        of_image = along.unflatten(1, (self.branches, self.images, -1)).sum((1, 3))  # (K, B), each of its own v
        return float(of_image.double().square().sum(1).mean()) / self.scale


def respond(
    probe: Probe,
    predict: Callable[[], Tensor],
    guided: Callable[[Tensor], Tensor],
    output_of: Output,
    projections: int,
    generator: torch.Generator,
) -> tuple[Tensor, Response]:
    """One model call, every layer as ``output_of`` computes it, and its response.

    Args:
        guided: the guided prediction (B, C, h, w) from the model output.
        projections: K, of random v that are drawn by ``generator``, on the CPU.
    """
    offs: list[Tensor] = []

    def behaviour(layer: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        probe.block_runs += 1
        state, output = output_of(layer, hidden, *args, **kwargs)
        offs.append(torch.zeros_like(output, requires_grad=True))
        return probe.adapter.blocks[layer].finish(state, output + offs[-1])

    with torch.enable_grad(), _frozen(probe.adapter.model):
        output = probe.call(predict, behaviour)
        prediction = guided(output)
        found = []
        for k in range(projections):
            v = torch.randn(prediction.shape, generator=generator).to(prediction)
            probe.block_runs += BACKWARD * probe.layers
            found.append(torch.autograd.grad((v * prediction).sum(), offs, retain_graph=k + 1 < projections))
    gradients = [torch.stack(of_layer) for of_layer in zip(*found, strict=True)]
    images = len(prediction)
    scale = float(prediction.detach().double().square().sum())
    return output.detach(), Response(gradients, scale, images, len(output) // images)


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
