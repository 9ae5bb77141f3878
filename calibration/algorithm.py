"""What each layer does at one step: by DiTFastAttn's Algorithm 1, the cheapest method whose error stays under the
layer's limit, or by price, the method that saves most for the drift it adds.
"""

import math
from collections.abc import Callable, Sequence
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
    reference = _reference(step)
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


def choose_by_price(
    step: Step, candidates: Sequence[Method], loss: Loss, price: float, cost: Callable[[int, Method], float]
) -> Decision:
    """The methods of least cost + loss^2 / price^2, layer by layer (a Lagrangian of cost under a bound for the sum of
    squares over steps and layers, in which what one layer adds to the square does not depend on the others as long as
    their errors have nothing in common).

    A trial's limit is the loss at which it is no better than FULL; of several under their limits the one of least cost
    + loss^2 / price^2 is taken. Candidates that cost more than what was found already are not tried.

    Args:
        candidates: in cost order, cheapest first, without FULL.
        price: the loss that a step may have for saving all it costs.
        cost: of a layer by a method, as a share of the step with every layer FULL.

    Raises:
        CalibrationError: the uncompressed model output is not finite.
    """
    reference = _reference(step)
    methods: list[Method] = []
    losses: list[float | None] = []
    trials: list[Trial] = []
    before = 0.0  # the loss of the layers so far
    for layer in range(step.layers):
        full = cost(layer, Method.FULL)
        chosen, least, after = Method.FULL, full, before
        for method in candidates:
            if cost(layer, method) >= least:
                continue
            limit = math.sqrt(before**2 + price**2 * (full - cost(layer, method)))
            trial = Trial(layer, method, float(loss(reference, step.attempt(layer, method))), limit)
            trials.append(trial)
            total = cost(layer, method) + (trial.loss**2 - before**2) / price**2
            if total < least:  # never of NaN
                chosen, least, after = method, total, trial.loss
        if chosen is not Method.FULL and chosen is not trials[-1].method:
            step.attempt(layer, chosen)  # what is kept is what was attempted last
        step.keep(layer, chosen)
        methods.append(chosen)
        losses.append(None if chosen is Method.FULL else after)
        before = after
    return Decision(tuple(methods), tuple(losses), tuple(trials))


def _reference(step: Step) -> Tensor:
    """The uncompressed model output, if it is finite."""
    reference = step.reference()
    if not torch.isfinite(reference).all():
        raise CalibrationError(
            "the uncompressed model output holds NaN or infinite values, so no method can be judged: check the "
            "checkpoint, or use --dtype float32 or bfloat16"
        )
    return reference


def all_full(layers: int) -> Decision:
    """What step 0 is, by rule."""
    return Decision((Method.FULL,) * layers, (None,) * layers, ())
