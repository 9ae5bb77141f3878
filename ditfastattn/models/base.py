"""What the runtime needs to know of an architecture."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ditfastattn.errors import ApplyError
from ditfastattn.layout import Layout
from plans import CrossShape, MlpShape, ModelSpec, SiteName, TokenOrder

State = TypeVar("State")


class BlockAdapter(ABC, Generic[State]):
    """One transformer block, cut at its self-attention so that a method can skip or halve what feeds it.

    A block with attention at two sites is two of these, one after the other: both have its ``module`` and are given
    the arguments that it was called with, the second as hidden states what the first one's :meth:`finish` returned.
    """

    module: nn.Module
    site: ClassVar[SiteName] = "attn"

    @abstractmethod
    def begin(self, *args: Any, skip_attention: bool, **kwargs: Any) -> State:
        """What does not depend on the method, from the arguments the block was called with.

        The state's ``hidden`` is (rows, N, C), the rows of this site, in which each guidance branch is one half.
        ``skip_attention``: the attention input will not be asked for, so its modulation need not be computed.
        """

    @abstractmethod
    def qkv(self, state: State, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of some rows of the batch, each (rows, N, H, D)."""

    @abstractmethod
    def project(self, core: Tensor, out: Tensor | None = None) -> Tensor:
        """The out-projection: (rows, N, H, D) -> (rows, N, C), written to ``out`` if one is given."""

    @abstractmethod
    def finish(self, state: State, attention_output: Tensor) -> Tensor:
        """The rest of the block: gate and residual of the attention output, then the MLP.

        ``attention_output`` is (B, N, C), in a prepared step also (B/2, N, C) for both guidance branches. Of a block
        with several sites: what follows up to the next site, and hidden states as the block is given them.
        """

    @property
    def mlp_hidden(self) -> int | None:
        """Channels between the two products of the MLP; None if plans cannot reach it (``models.parts``)."""
        return None

    @property
    def reached(self) -> tuple[SiteName, ...]:
        """The sites after its attention that plans can reach, in the order in which they run."""
        return ()


class PreparedBlock(BlockAdapter[State]):
    """A block that prepared steps (``compile=True``, ``graphs=True``) can run: with everything at hand beforehand."""

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


@dataclass(frozen=True)
class Call:
    """One call of a transformer, its arguments by meaning."""

    latents: Tensor  # (B, C, h, w), of a video (B, C, frames, h, w)
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


class Place(NamedTuple):
    """Where a block's cells stand in a plan."""

    site: SiteName
    layer: int  # of the site

    def __str__(self) -> str:
        return f"block {self.layer}" if self.site == "attn" else f"{self.site} block {self.layer}"


class ModelAdapter(ABC):
    """A transformer: its blocks, its call and its guidance layout."""

    guided_layout: Layout  # the order of the branches in a guided batch
    per_image: frozenset[str] = frozenset()  # the blocks' inputs, by name or "argument 1", that hold nothing per token
    guided_entry: str | None = None  # a method of the model that adds up the branches itself, given the scale
    why_eager = "its steps cannot be prepared yet"  # of what is no PreparedModel
    runs_between = False  # the model's own forward computes between one block and the next

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @property
    @abstractmethod
    def blocks(self) -> Sequence[BlockAdapter[Any]]:
        """In the order in which their attention runs, the sites of a video model in turn."""

    @property
    def places(self) -> list[Place]:
        """The place of each block, in the order of :attr:`blocks`."""
        found, counted = [], Counter[SiteName]()
        for block in self.blocks:
            found.append(Place(block.site, counted[block.site]))
            counted[block.site] += 1
        return found

    @property
    def part_layers(self) -> list[dict[SiteName, int]]:
        """Of each block, which layer of their sites its cross-attention and its MLP are, where plans can reach them."""
        counted = Counter[SiteName]()
        found: list[dict[SiteName, int]] = []
        for block in self.blocks:
            found.append({site: counted[site] for site in block.reached})
            counted.update(block.reached)
        return found

    @property
    def cross_layers(self) -> int:
        """How many cross-attentions plans can reach."""
        return sum("cross" in block.reached for block in self.blocks)

    @property
    def mlp(self) -> MlpShape | None:
        """Number and width of the MLPs that plans can reach; None if there are none, or of several widths."""
        widths = [block.mlp_hidden for block in self.blocks if block.mlp_hidden is not None]
        return MlpShape(layers=len(widths), hidden=widths[0]) if len(set(widths)) == 1 else None

    @property
    def modules(self) -> list[tuple[nn.Module, range]]:
        """Every module whose forward is a block's, with the indices of the blocks that it runs."""
        runs = groupby(enumerate(self.blocks), key=lambda item: id(item[1].module))
        indices = [[index for index, _ in run] for _, run in runs]
        return [(self.blocks[run[0]].module, range(run[0], run[-1] + 1)) for run in indices]

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating-point parameter."""
        return next(parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @abstractmethod
    def spec(self) -> ModelSpec:
        """Class and shape, as a plan records them."""

    def spec_at(self, latent_shape: Sequence[int]) -> ModelSpec:
        """:meth:`spec` for latents (C, h, w) or (C, T, h, w) of one image or video, where they may be of any size."""
        return self.spec()

    def spec_for(self, planned: ModelSpec) -> ModelSpec:
        """What a plan's model is compared with: :meth:`spec`, with the plan's sizes where only a call tells them."""
        return self.with_parts_of(planned, self.spec())

    def with_parts_of(self, planned: ModelSpec, own: ModelSpec) -> ModelSpec:
        """``own`` with cross-attention and MLPs if the plan's model has them: plans without a site do not speak of it.

        Words are the plan's, as every call may have another number of them.
        """
        cross = None
        if planned.cross is not None and self.cross_layers:
            cross = CrossShape(layers=self.cross_layers, words=planned.cross.words)
        return own.model_copy(update={"cross": cross, "mlp": None if planned.mlp is None else self.mlp})

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

    def disagreements(self, prepared: bool) -> list[str]:
        """What parts of the model, run on small inputs, compute otherwise than the adapter; asked once, at apply().

        Nothing for a class that is known by name; one that was recognised by its parts may be a relative.

        Args:
            prepared: embedding and head are ours to run, too.
        """
        return []

    def order_obstacles(self, order: TokenOrder) -> list[str]:
        """Why tokens cannot stand in that order between the blocks."""
        return []

    @abstractmethod
    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call: ...

    def given_scale(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        """The guidance scale in a call of :attr:`guided_entry`."""
        raise NotImplementedError

    def unwrap(self, output: Any) -> Tensor:
        """The bare output of the model's own forward, of the latents' dimensions."""
        bare: Tensor = output if isinstance(output, Tensor) else output[0]
        return bare

    def predict(self, latents: Tensor, timestep: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The bare output of one call of the model.

        Args:
            latents: of the whole batch, both guidance branches counted.
            timestep: (rows,), as the sampler has it.
            arguments: of a condition (``Condition.arguments``).
        """
        return self.unwrap(self.model(latents, timestep=timestep, **arguments))

    @abstractmethod
    def is_guided(self, call: Call) -> bool:
        """Whether the batch holds both guidance branches in the order of ``guided_layout``."""

    @abstractmethod
    def mixes_branches(self, call: Call) -> bool:
        """Whether the batch holds conditional and unconditional rows, in whatever order."""


class PreparedModel(ModelAdapter):
    """A transformer whose steps can be prepared before the first runs: ``compile=True``, ``graphs=True``.

    Its blocks are all of the site ``attn``.
    """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[PreparedBlock[Any]]: ...

    @abstractmethod
    def example(self, batch: int, tokens: int) -> dict[str, Any]:
        """Arguments of a call on ``batch`` rows of random latents of ``tokens`` tokens, for measuring."""

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


def prepared(adapter: ModelAdapter) -> PreparedModel:
    """The same adapter, if steps of its model can be prepared.

    Raises:
        ApplyError: they cannot.
    """
    if isinstance(adapter, PreparedModel):
        return adapter
    raise ApplyError(
        f"{type(adapter.model).__name__} cannot be run with compile=True or graphs=True, as {adapter.why_eager}: apply "
        "the plan without them (or subclass ditfastattn.models.base.PreparedModel)"
    )
