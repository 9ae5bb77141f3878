"""What the steps to come take from their timesteps and the condition, computed for many of them at a time."""

from dataclasses import replace

import torch
from torch import Tensor

from ditfastattn.capture import capture
from ditfastattn.models.base import Call, Conditioning, PreparedModel

BYTES_AHEAD = 2**27  # of modulations that are computed at a time: their weights are read seldom, and little is kept


class Ahead:
    """The modulations of a run, of as many steps at once as :data:`BYTES_AHEAD` hold.

    Its buffers never move, so that the many small operations can be captured and replayed as one. ``steps``: how many
    are computed at a time.

    Args:
        call: the first of the run; later runs have a condition of the same shape.
        timesteps: (T,), of the run's steps, on the model's device.
    """

    def __init__(self, adapter: PreparedModel, call: Call, timesteps: Tensor) -> None:
        self._adapter = adapter
        one = adapter.conditioning(timesteps[:1], call)
        self.steps = min(len(timesteps), max(1, BYTES_AHEAD // one.blocks.nbytes))
        # The last steps may be fewer than are computed at a time: the last timestep stands in for those that lack.
        self._timesteps = torch.cat([timesteps, timesteps[-1:].expand(self.steps)])
        self._now = timesteps[: self.steps].clone()  # (S,)
        self._call = replace(
            call,
            condition=None if call.condition is None else call.condition.clone(),
            sizes=call.sizes and {name: None if size is None else size.clone() for name, size in call.sizes.items()},
        )
        self._first = 0  # of the steps that are computed
        self._found = self._conditioning()
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture(self) -> None:
        """Raises CaptureError if it cannot be."""

        def work() -> None:
            self._found = self._conditioning()

        self._graph = capture(work)

    def begin(self, call: Call) -> None:
        """A run with the condition of ``call``."""
        for buffer, given in zip(_tensors(self._call), _tensors(call), strict=True):
            buffer.copy_(given)
        self._compute(0)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Of one step, counted from the run's first: what blocks (L, B, K, C) and head (B, K', C) take. Read it before
        the next call."""
        if not 0 <= step - self._first < self.steps:
            self._compute(step)
        index = step - self._first
        return self._found.blocks[index], self._found.head[index]

    def _compute(self, step: int) -> None:
        self._now.copy_(self._timesteps[step : step + self.steps])
        self._first = step
        if self._graph is None:
            self._found = self._conditioning()
        else:
            self._graph.replay()

    def _conditioning(self) -> Conditioning:
        return self._adapter.conditioning(self._now, self._call)


def _tensors(call: Call) -> list[Tensor]:
    """What a condition is made of."""
    return [tensor for tensor in (call.condition, *(call.sizes or {}).values()) if tensor is not None]
