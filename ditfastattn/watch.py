"""Checks whose numbers are computed on the device: judged when they have arrived, never waited for in mid-run."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Judge = Callable[[list[float]], None]


@dataclass(frozen=True)
class _Pending:
    values: Tensor  # on the host, valid after ``arrived``
    arrived: torch.cuda.Event
    judge: Judge


class Watch:
    """Judges numbers in the order they were posted. A judge raises what is wrong.

    On a CPU numbers are judged as they are posted. On a GPU they travel behind the work that made them: a fault is
    raised by the first :meth:`poll` after its arrival, a few steps late, and by :meth:`drain` at the latest, which ends
    every run before its result is handed out.
    """

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()

    def post(self, values: Tensor, judge: Judge) -> None:
        """``judge`` will be called with the numbers of ``values`` (K,)."""
        if values.device.type != "cuda":
            judge(values.tolist())
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(values.device))  # not of the current GPU, if that is another
        self._pending.append(_Pending(host, arrived, judge))

    def poll(self) -> None:
        """Judges what has arrived."""
        while self._pending and self._pending[0].arrived.query():
            self._judge()

    def drain(self) -> None:
        """Waits for all that was posted and judges it."""
        while self._pending:
            self._pending[0].arrived.synchronize()
            self._judge()

    def forget(self) -> None:
        """Drops what has not been judged: the run it belongs to is over."""
        self._pending.clear()

    def _judge(self) -> None:
        pending = self._pending.popleft()
        pending.judge(pending.values.tolist())
