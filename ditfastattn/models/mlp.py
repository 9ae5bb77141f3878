"""Blocks whose MLP a plan can reach: the site ``mlp``."""

from abc import abstractmethod
from typing import TypeVar

from torch import Tensor, nn

from ditfastattn.models.base import BlockAdapter

State = TypeVar("State")


class WithMlp(BlockAdapter[State]):
    """A block whose MLP is a site of its own: its :meth:`finish`, in three parts."""

    @property
    @abstractmethod
    def mlp_hidden(self) -> int | None: ...

    @abstractmethod
    def enter_mlp(self, state: State, attention_output: Tensor, rows: slice | None) -> tuple[Tensor, Tensor | None]:
        """Up to the MLP: the hidden states that its output is added to (B, N, C), and its input (rows, N, C).

        Args:
            attention_output: as in :meth:`finish`.
            rows: those that the MLP computes, as the state counts them; None where its output is reused.
        """

    @abstractmethod
    def feed(self, state: State, x: Tensor) -> Tensor:
        """The MLP before its gate: (rows, N, C) -> (rows, N, C)."""

    @abstractmethod
    def leave_mlp(self, state: State, hidden: Tensor, fed: Tensor) -> Tensor:
        """The block's end: gate and residual of the MLP's output (B, N, C), in a prepared step also (B/2, N, C)."""

    def finish(self, state: State, attention_output: Tensor) -> Tensor:
        hidden, x = self.enter_mlp(state, attention_output, slice(None))
        assert x is not None
        return self.leave_mlp(state, hidden, self.feed(state, x))


def hidden_width(mlp: nn.Module) -> int | None:
    """The most channels that one of an MLP's products reads; None if none is known (quantised by others)."""
    return max((module.in_features for module in mlp.modules() if isinstance(module, nn.Linear)), default=None)
