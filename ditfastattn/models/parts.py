"""Blocks with more sites than their attention: cross-attention and the MLP, which plans may reach."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from ditfastattn.models.base import BlockAdapter, ModelAdapter
from plans import ModelSpec, SiteName

State = TypeVar("State")


class WithParts(BlockAdapter[State]):
    """A block whose :meth:`finish` is cut at the modules that follow its attention, each a site of its own.

    A part's output is added to the hidden states when the next part is entered, or by :meth:`leave` after the last: so
    that what adds it and the norm that follows can be one pass.
    """

    @property
    def parts(self) -> tuple[SiteName, ...]:
        """The sites that follow attention, in the order in which they run; the last is ``mlp``."""
        return ("mlp",)

    @property
    def reached(self) -> tuple[SiteName, ...]:
        return tuple(site for site in self.parts if site != "mlp" or self.mlp_hidden is not None)

    @property
    @abstractmethod
    def mlp_hidden(self) -> int | None: ...

    @abstractmethod
    def stream(self, state: State) -> Tensor:
        """The hidden states (B, N, C) that attention's output is added to."""

    @abstractmethod
    def enter(
        self, site: SiteName, state: State, hidden: Tensor, output: Tensor, rows: slice | None
    ) -> tuple[Tensor, Tensor | None]:
        """Up to a part: the hidden states that its output is added to (B, N, C), and its input (rows, N, C).

        Args:
            hidden: (B, N, C), before the output of the part before.
            output: of the part before, or of attention, not yet added: as in :meth:`finish`.
            rows: those that the part computes, as the state counts them; None where its output is reused.
        """

    @abstractmethod
    def compute(self, site: SiteName, state: State, x: Tensor, rows: slice) -> Tensor:
        """A part's output before it is gated and added: (rows, N, C) -> (rows, N, C), for the same rows."""

    @abstractmethod
    def leave(self, state: State, hidden: Tensor, output: Tensor) -> Tensor:
        """The block's end: the last part's output, gated and added. It is (B, N, C), in a prepared step also (B/2, N,
        C)."""

    def finish(self, state: State, attention_output: Tensor) -> Tensor:
        return self.finish_watched(state, attention_output, lambda _, output: output)

    def finish_watched(
        self, state: State, attention_output: Tensor, watch: Callable[[SiteName, Tensor], Tensor]
    ) -> Tensor:
        """:meth:`finish`, in which ``watch`` is given every part's output and says what takes its place."""
        hidden, output, everything = self.stream(state), attention_output, slice(None)
        for site in self.parts:
            hidden, x = self.enter(site, state, hidden, output, everything)
            assert x is not None
            output = watch(site, self.compute(site, state, x, everything))
        return self.leave(state, hidden, output)


def hidden_width(mlp: nn.Module) -> int | None:
    """The most channels that one of an MLP's products reads; None if none is known (quantised by others)."""
    return max((module.in_features for module in mlp.modules() if isinstance(module, nn.Linear)), default=None)


def part_obstacles(adapter: ModelAdapter, planned: ModelSpec) -> list[str]:
    """Why a model cannot follow the sites after attention of a plan for ``planned``."""
    found = []
    if planned.cross is not None and not adapter.cross_layers:
        found.append(
            "the plan has the site cross, and this model has no cross-attention that plans can reach; use one without, "
            "as python -m plans make pab writes without --cross-interval"
        )
    if planned.mlp is not None and adapter.mlp is None:
        found.append(
            "the plan has the site mlp, and plans cannot reach the MLPs of this model; use one without, as python -m "
            "plans make --attention-only writes"
        )
    return found
