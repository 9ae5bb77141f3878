"""How a calibration runs a block: as the model's own arguments say, or in compiled pieces."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ditfastattn.cache import Cell, LayerCache
from ditfastattn.execute import Contexts, computed_rows, run_block
from ditfastattn.models.base import Call, ModelAdapter, PreparedModel
from ditfastattn.pieces import Pieces
from ditfastattn.prepared import BlockInputs, JointWeights, Stored, run_prepared_block
from plans import Method


class Blocks(Protocol):
    """Runs blocks of one model at one step after another.

    ``layer`` counts the blocks in the order in which their attention runs, those of a video model's sites in turn.
    """

    def begin_step(self, timestep: float) -> None: ...

    def run(self, layer: int, cell: Cell, cache: LayerCache, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A block by ``cell``, (rows, N, C) -> (rows, N, C); the further arguments are the model's own."""

    def qkv(
        self, layer: int, method: Method, hidden: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (rows, N, H, D) of the rows that ``method`` computes, from the block's input."""


class EagerBlocks:
    """As an eager session does."""

    def __init__(self, adapter: ModelAdapter, contexts: Contexts) -> None:
        self._blocks = adapter.blocks
        self._contexts = contexts

    def begin_step(self, timestep: float) -> None:
        """Nothing: the block's arguments bring the timestep."""

    def run(self, layer: int, cell: Cell, cache: LayerCache, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        block = self._blocks[layer]
        return run_block(block, cell, cache, self._contexts[block.site], hidden, *args, **kwargs)

    def qkv(
        self, layer: int, method: Method, hidden: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        block = self._blocks[layer]
        state = block.begin(hidden, *args, skip_attention=False, **kwargs)
        return block.qkv(state, computed_rows(method, state.hidden.shape[0], self._contexts[block.site].layout))


class PieceBlocks:
    """As the prepared steps of a session do; the same to rounding.

    Args:
        call: a model call of this calibration, for the batch and the condition.
    """

    def __init__(self, adapter: PreparedModel, contexts: Contexts, pieces: Pieces, call: Call) -> None:
        self._adapter = adapter
        self._context = contexts["attn"]
        self._pieces = pieces
        self._call = call
        self._shared = adapter.context(call)
        self._joint = [JointWeights(block.joint_weights()).tensors for block in adapter.blocks]
        self._inputs: list[BlockInputs] = []

    def begin_step(self, timestep: float) -> None:
        timesteps = torch.tensor([timestep], device=self._call.latents.device)
        modulations = self._adapter.conditioning(timesteps, self._call).blocks[0]
        self._inputs = [
            BlockInputs(block, modulation.clone(), self._shared, joint)
            for block, modulation, joint in zip(self._adapter.blocks, modulations, self._joint, strict=True)
        ]

    def run(self, layer: int, cell: Cell, cache: LayerCache, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return run_prepared_block(self._inputs[layer], Stored(cell, cache), self._context, self._pieces, hidden)

    def qkv(
        self, layer: int, method: Method, hidden: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = computed_rows(method, hidden.shape[0], self._context.layout)
        return self._inputs[layer].qkv(self._pieces, hidden, rows)
