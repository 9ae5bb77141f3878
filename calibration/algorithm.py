"""DiTFastAttn, Algorithm 1: at one step, the cheapest method per layer whose error stays under the layer's limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from calibration.errors import CalibrationError
from calibration.loss import Loss
from plans import Method


class Step(Protocol):
    """One sampler step in which methods can be tried. Earlier layers keep what they were given; later are FULL.

    Layers are all compressed attentions in the order in which they run: in a video model those of frames and those
    between frames in turn.
    """

    layers: int

    def reference(self) -> Tensor:
        """Model output with every layer FULL."""

    def attempt(self, layer: int, method: Method) -> Tensor:
        """Model output with ``layer`` on ``method``."""

    def keep(self, layer: int, method: Method) -> None:
        """Fixes ``layer`` to the method last attempted there, or to FULL."""


@dataclass(frozen=True)
class Trial:
    """One candidate: tried at a layer, with its loss and the limit it had to stay under."""

    layer: int
    method: Method
    loss: float
    limit: float

    @property
    def accepted(self) -> bool:
        return self.loss < self.limit


@dataclass(frozen=True)
class Decision:
    """The methods of one step, the loss that decided each cell (None where FULL), and every trial."""

    methods: tuple[Method, ...]
    losses: tuple[float | None, ...]
    trials: tuple[Trial, ...]


def choose_methods(step: Step, candidates: Sequence[Method], loss: Loss, threshold: float) -> Decision:
    """Algorithm 1 for one step.

    Args:
        candidates: in cost order, cheapest first, without FULL.
        threshold: delta; the limit of layer l is delta (l + 1) / L, l and L counting every compressed attention of the
            model in the order in which it runs, whatever its site.

    Raises:
        CalibrationError: the uncompressed model output is not finite.
    """
    reference = step.reference()
    if not torch.isfinite(reference).all():
        raise CalibrationError(
            "the uncompressed model output holds NaN or infinite values, so no method can be judged: check the "
            "checkpoint, or use --dtype float32 or bfloat16"
        )
    methods: list[Method] = []
    losses: list[float | None] = []
    trials: list[Trial] = []
    for layer in range(step.layers):
        limit = threshold * (layer + 1) / step.layers
        for method in candidates:
            output = step.attempt(layer, method)
            trial = Trial(layer, method, float(loss(reference, output)), limit)
            trials.append(trial)
            if trial.accepted:
                methods.append(method)
                losses.append(trial.loss)
                break
        else:
            methods.append(Method.FULL)
            losses.append(None)
        step.keep(layer, methods[-1])
    return Decision(tuple(methods), tuple(losses), tuple(trials))


def all_full(layers: int) -> Decision:
    """What step 0 is, by rule."""
    return Decision((Method.FULL,) * layers, (None,) * layers, ())
