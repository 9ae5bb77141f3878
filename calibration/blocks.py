"""How a calibration runs a block: as the model's own arguments say, or in compiled pieces."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ditfastattn.cache import Cell, LayerCache
from ditfastattn.execute import Context, run_block
from ditfastattn.models.base import Call, ModelAdapter, PreparedModel
from ditfastattn.pieces import Pieces
from ditfastattn.prepared import BlockInputs, JointWeights, run_prepared_block


class Blocks(Protocol):
    """Runs blocks of one model at one step after another."""

    def begin_step(self, timestep: float) -> None: ...

    def run(self, layer: int, cell: Cell, cache: LayerCache, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A block by ``cell``, (B, N, C) -> (B, N, C); the further arguments are the model's own."""

    def qkv(self, layer: int, rows: slice, hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (rows, N, H, D) of some rows of the block's input."""


class EagerBlocks:
    """As an eager session does."""

    def __init__(self, adapter: ModelAdapter, context: Context) -> None:
        self._adapter = adapter
        self._context = context

    def begin_step(self, timestep: float) -> None:
        """Nothing: the block's arguments bring the timestep."""

    def run(self, layer: int, cell: Cell, cache: LayerCache, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return run_block(self._adapter.blocks[layer], cell, cache, self._context, hidden, *args, **kwargs)

    def qkv(self, layer: int, rows: slice, hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        block = self._adapter.blocks[layer]
        return block.qkv(block.begin(hidden, *args, skip_attention=False, **kwargs), rows)


class PieceBlocks:
    """As the prepared steps of a session do; the same to rounding.

    Args:
        call: a model call of this calibration, for the batch and the condition.
    """

    def __init__(self, adapter: PreparedModel, context: Context, pieces: Pieces, call: Call) -> None:
        self._adapter = adapter
        self._context = context
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
        return run_prepared_block(self._inputs[layer], cell, cache, self._context, self._pieces, hidden)

    def qkv(self, layer: int, rows: slice, hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return self._inputs[layer].qkv(self._pieces, hidden, rows)
