"""The outputs of a transformer that plans can do without: every attention, and MLPs where plans reach them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from calibration.probe import Probe
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.models.mlp import WithMlp
from plans import SiteName


class Part(NamedTuple):
    """One output of a block: which, of which layer of its site."""

    site: SiteName
    layer: int
    block: int  # counted as the probe does


class Tap(Protocol):
    """Is shown every output as it is made, and gives what the model goes on with."""

    def attention(self, part: int, output: Tensor, q: Tensor, k: Tensor, v: Tensor, core: Tensor) -> Tensor:
        """``output`` (rows, N, C), from ``core`` and q, k, v (rows, N, H, D)."""

    def mlp(self, part: int, output: Tensor) -> Tensor:
        """``output`` (rows, N, C)."""


class Parts:
    """The outputs of a probe's model in the order in which they are made, those of MLPs only if ``mlps``.

    They are computed in full by torch's own attention, which has gradients.
    """

    def __init__(self, probe: Probe, mlps: bool) -> None:
        self.probe = probe
        self.parts: list[Part] = []
        self._of_block: list[tuple[int, int | None]] = []
        self._full = SDPA().full
        for index, (place, mlp) in enumerate(zip(probe.places, probe.adapter.mlp_layers, strict=True)):
            attention = len(self.parts)
            self.parts.append(Part(place.site, place.layer, index))
            if mlps and mlp is not None:
                self.parts.append(Part("mlp", mlp, index))
            self._of_block.append((attention, attention + 1 if len(self.parts) > attention + 1 else None))

    def __len__(self) -> int:
        return len(self.parts)

    def call(self, predict: Callable[[], Tensor], tap: Tap) -> Tensor:
        """One model call, every output shown to ``tap``; the model output."""
        return self.probe.call(predict, lambda *args, **kwargs: self._forward(tap, *args, **kwargs))

    def _forward(self, tap: Tap, index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.probe.block_runs += 1
        block = self.probe.adapter.blocks[index]
        attention, mlp = self._of_block[index]
        state = block.begin(hidden, *args, skip_attention=False, **kwargs)
        q, k, v = block.qkv(state, slice(0, state.hidden.shape[0]))
        core = self._full(q, k, v)
        output = tap.attention(attention, block.project(core), q, k, v, core)
        if mlp is None:
            return block.finish(state, output)
        assert isinstance(block, WithMlp)
        between, x = block.enter_mlp(state, output, slice(None))
        assert x is not None
        return block.leave_mlp(state, between, tap.mlp(mlp, block.feed(state, x)))
