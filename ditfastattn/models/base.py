"""What the runtime needs to know of an architecture."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from ditfastattn.layout import Layout
from plans import ModelSpec

State = TypeVar("State")


class BlockAdapter(ABC, Generic[State]):
    """One transformer block, cut at its self-attention so that a method can skip or halve what feeds it."""

    module: nn.Module

    @abstractmethod
    def begin(self, *args: Any, skip_attention: bool, **kwargs: Any) -> State:
        """What does not depend on the method, from the arguments the block was called with.

        ``skip_attention``: the attention input will not be asked for, so its modulation need not be computed.
        """

    @abstractmethod
    def qkv(self, state: State, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of some rows of the batch, each (rows, N, H, D)."""

    @abstractmethod
    def project(self, core: Tensor) -> Tensor:
        """The out-projection: (rows, N, H, D) -> (rows, N, C)."""

    @abstractmethod
    def finish(self, state: State, attention_output: Tensor) -> Tensor:
        """The rest of the block: gate and residual of the attention output (B, N, C), then the MLP."""


@dataclass(frozen=True)
class Call:
    """One call of a transformer, its arguments by meaning."""

    latents: Tensor  # (B, C, h, w)
    timestep: Any  # number or tensor, as the caller gave it
    condition: Tensor | None  # what tells the two guidance branches apart: labels (B,), prompt embeddings (B, T, C)


class ModelAdapter(ABC):
    """A transformer: its blocks, its call and its guidance layout."""

    guided_layout: Layout  # the order of the branches in a guided batch
    per_image: frozenset[str] = frozenset()  # the blocks' inputs, by name, that hold nothing per token

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @property
    @abstractmethod
    def blocks(self) -> list[BlockAdapter[Any]]: ...

    @abstractmethod
    def spec(self) -> ModelSpec:
        """Class and shape, as a plan records them."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the tokens of latents of that size, which enter the blocks row by row.

        Between the blocks nothing may be added per token: a plan may have permuted them (``ditfastattn.order``).
        """

    def tokens(self, height: int, width: int) -> int:
        """Tokens of latents of that size."""
        rows, columns = self.grid(height, width)
        return rows * columns

    @abstractmethod
    def obstacles(self) -> list[str]:
        """Why this instance cannot be compressed as it is (another attention processor, fused projections, ...)."""

    @abstractmethod
    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call: ...

    @abstractmethod
    def is_guided(self, call: Call) -> bool:
        """Whether the batch holds both guidance branches in the order of ``guided_layout``."""

    @abstractmethod
    def mixes_branches(self, call: Call) -> bool:
        """Whether the batch holds conditional and unconditional rows, in whatever order."""
