"""What the runtime needs to know of an architecture."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

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
    def state(
        self, hidden: Tensor, modulation: Tensor, context: tuple[Tensor, ...], joint: tuple[Tensor, ...]
    ) -> State:
        """What :meth:`begin` returns, for a prepared step.

        Args:
            hidden: (rows, N, C).
            modulation: (rows, K, C), this block's at this step (:class:`Conditioning`).
            context: tensors that every block reads, of the same rows.
            joint: the groups of :meth:`joint_weights`, each concatenated; empty where they are not needed.
        """

    @abstractmethod
    def joint_weights(self) -> list[list[Tensor]]:
        """Groups of weights that a prepared block uses concatenated along their first dimension."""

    @abstractmethod
    def project(self, core: Tensor, out: Tensor | None = None) -> Tensor:
        """The out-projection: (rows, N, H, D) -> (rows, N, C), written to ``out`` if one is given."""

    @abstractmethod
    def finish(self, state: State, attention_output: Tensor) -> Tensor:
        """The rest of the block: gate and residual of the attention output, then the MLP.

        ``attention_output`` is (B, N, C), in a prepared step also (B/2, N, C) for both guidance branches.
        """


@dataclass(frozen=True)
class Call:
    """One call of a transformer, its arguments by meaning."""

    latents: Tensor  # (B, C, h, w)
    timestep: Any  # number or tensor, as the caller gave it
    condition: Tensor | None  # what tells the two guidance branches apart: labels (B,), prompt embeddings (B, T, C)
    mask: Tensor | None = None  # which words of the prompts count, (B, T), or added to the scores, (B, 1, T)
    sizes: Mapping[str, Tensor | None] | None = None  # of the images, where the model embeds them


@dataclass(frozen=True)
class Conditioning:
    """What some steps of a run take from their timestep and condition, before any latents are known.

    It is the same for every step of every image of a batch, so that a run computes it once for many steps instead of
    reading the weights of all modulations in every step.
    """

    blocks: Tensor  # (S, L, B, K, C): the modulation of S steps and L layers
    head: Tensor  # (S, B, K', C)


class ModelAdapter(ABC):
    """A transformer: its blocks, its call and its guidance layout."""

    guided_layout: Layout  # the order of the branches in a guided batch
    conditioned_on: Literal["labels", "prompts"]
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
    def example(self, batch: int, tokens: int) -> dict[str, Any]:
        """Arguments of a call on ``batch`` rows of random latents of ``tokens`` tokens, for measuring."""

    @abstractmethod
    def is_guided(self, call: Call) -> bool:
        """Whether the batch holds both guidance branches in the order of ``guided_layout``."""

    @abstractmethod
    def mixes_branches(self, call: Call) -> bool:
        """Whether the batch holds conditional and unconditional rows, in whatever order."""

    @abstractmethod
    def conditioning(self, timesteps: Tensor, call: Call) -> Conditioning:
        """The modulations of the steps at ``timesteps`` (S,), for the batch and the condition of ``call``."""

    @abstractmethod
    def context(self, call: Call) -> tuple[Tensor, ...]:
        """What every block of every step of a run reads besides hidden states and modulation (prompts), (B, ...)."""

    @abstractmethod
    def embed(self, latents: Tensor) -> Tensor:
        """Tokens with their positions: (B, C_in, h, w) -> (B, N, C)."""

    @abstractmethod
    def head(self, hidden: Tensor, modulation: Tensor, height: int, width: int) -> Tensor:
        """The model output (B, C_out, h, w) from the last block's (B, N, C); modulation (B, K', C)."""

    @abstractmethod
    def wrap(self, output: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The output (B, C_out, h, w) as the model's own forward returns it to a call with these arguments."""
