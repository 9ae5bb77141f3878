"""Outputs that are not computed: the last one again, or extrapolated from the last few (``plans.forecast``)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ditfastattn.attention import fit_rows
from ditfastattn.cache import Cell, LayerCache
from ditfastattn.layout import Layout


def extrapolate(outputs: Sequence[Tensor], weights: Sequence[float] | Tensor) -> Tensor:
    """The sum of weights[i] * outputs[i], in float32 at least and one after the other, in the dtype of the outputs.

    Args:
        outputs: two or more tensors of one shape and dtype.
        weights: as many numbers, or a float32 tensor of as many.
    """
    wide = torch.promote_types(outputs[0].dtype, torch.float32)
    total = outputs[0].to(wide) * weights[0]
    for i, output in enumerate(outputs[1:], start=1):
        total = total + output.to(wide) * weights[i]
    return total.to(outputs[0].dtype)


def fitted(outputs: Sequence[Tensor], batch: int, layout: Layout) -> Sequence[Tensor]:
    """Outputs of one size: as they are if they agree, else each for the whole batch of ``batch`` rows."""
    if len({output.shape[0] for output in outputs}) == 1:
        return outputs
    return [fit_rows(output, batch, batch, layout) for output in outputs]


def reused_output(cell: Cell, cache: LayerCache, batch: int, layout: Layout) -> Tensor:
    """What AST and its forecasts give: (batch or batch/2, ...), half where all that is stored is half."""
    read = cell.method.outputs_read
    outputs = cache.outputs[:read]
    assert len(outputs) == read, f"{cell.method} with {len(outputs)} stored outputs"
    if not cell.method.forecasts:
        return outputs[0]
    return extrapolate(fitted(outputs, batch, layout), cell.weights)
