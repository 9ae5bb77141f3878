"""The outputs of a transformer that plans can do without: every attention, and what follows it where plans reach it."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from calibration.probe import Probe
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.models.parts import WithParts
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

    def follower(self, part: int, output: Tensor) -> Tensor:
        """``output`` (B, N, C), of a cross-attention or an MLP."""


class Parts:
    """The outputs of a probe's model in the order in which they are made.

    ``sites``: which are listed of those that follow attention, ``cross`` and ``mlp``. All are computed in full by
    torch's own attention, which has gradients.
    """

    def __init__(self, probe: Probe, sites: Container[SiteName]) -> None:
        self.probe = probe
        self.parts: list[Part] = []
        self._of_block: list[dict[SiteName, int]] = []  # of its own site, and of those that follow
        self._full = SDPA().full
        for index, (place, layers) in enumerate(zip(probe.places, probe.adapter.part_layers, strict=True)):
            listed = {place.site: place.layer} | {site: layer for site, layer in layers.items() if site in sites}
            self._of_block.append({site: len(self.parts) + number for number, site in enumerate(listed)})
            self.parts += [Part(site, layer, index) for site, layer in listed.items()]

    def __len__(self) -> int:
        return len(self.parts)

    def call(self, predict: Callable[[], Tensor], tap: Tap) -> Tensor:
        """One model call, every output shown to ``tap``; the model output."""
        return self.probe.call(predict, lambda *args, **kwargs: self._forward(tap, *args, **kwargs))

    def _forward(self, tap: Tap, index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.probe.block_runs += 1
        block = self.probe.adapter.blocks[index]
        at = self._of_block[index]
        attention = at[block.site]
        state = block.begin(hidden, *args, skip_attention=False, **kwargs)
        q, k, v = block.qkv(state, slice(0, state.hidden.shape[0]))
        core = self._full(q, k, v)
        output = tap.attention(attention, block.project(core), q, k, v, core)
        if len(at) == 1:
            return block.finish(state, output)
        assert isinstance(block, WithParts)
        return block.finish_watched(
            state, output, lambda site, made: tap.follower(at[site], made) if site in at else made
        )
