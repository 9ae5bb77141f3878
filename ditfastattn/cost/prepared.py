"""A model's parts as ``apply(pipe, plan, compile=True, graphs=True)`` runs them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ditfastattn.ahead import Ahead
from ditfastattn.cache import Cell, LayerCache
from ditfastattn.cost.parts import Parts
from ditfastattn.cost.rows import BEGIN, CALL, HOST_CALL, HOST_STEP, Row
from ditfastattn.cost.steps import STEPS, session_rows
from ditfastattn.cost.timing import Thunk, launched
from ditfastattn.execute import Context
from ditfastattn.models.base import PreparedModel
from ditfastattn.pieces import Pieces, compiled_pieces
from ditfastattn.prepared import BlockInputs, JointWeights, Stored, run_prepared_parts, weights_tensor


class PreparedParts(Parts):
    """Blocks in pieces, with everything at hand beforehand.

    Args:
        compile, graphs: as of ``ditfastattn.apply``. Rows are captured by whoever times them.
    """

    def __init__(
        self,
        adapter: PreparedModel,
        batch: int,
        tokens: int,
        context: Context,
        compile: bool = False,
        graphs: bool = False,
    ) -> None:
        super().__init__(adapter, batch, tokens, context)
        self._compile, self._graphs = compile, graphs
        self._pieces = compiled_pieces() if compile else Pieces()
        timestep = torch.as_tensor(self.call.timestep, device=adapter.device).flatten()[:1]
        self._ahead = Ahead(adapter, self.call, timestep.expand(STEPS))
        if graphs and adapter.device.type == "cuda":
            self._ahead.capture()
        self._now = [tensor.clone() for tensor in self._ahead.at(0)]
        modulation, others = self._now[0], adapter.context(self.call)
        self._inputs = [
            BlockInputs(block, modulation[layer], others, JointWeights(block.joint_weights()).tensors)
            for layer, block in enumerate(adapter.blocks[: self.layers])
        ]
        self._hidden = self._pieces.embed(adapter, self.call.latents, None)  # (B, N, C)

    def _block(self, row: Row) -> Thunk:
        stored = []
        for layer in range(self.layers):
            attention, mlp = self.stored(layer, row)
            stored.append((self._with_weights(row.attn, attention), self._with_weights(row.mlp, mlp)))

        def run() -> Tensor:
            hidden = self._hidden
            for inputs, (attention, mlp) in zip(self._inputs, stored, strict=True):
                hidden = run_prepared_parts(inputs, attention, {"mlp": mlp}, self.context, self._pieces, hidden)
            return hidden

        return run

    def _with_weights(self, cell: Cell, cache: LayerCache) -> Stored:
        weights = weights_tensor([cell.weights], self._hidden)[0] if cell.method.forecasts else None
        return Stored(cell, cache, cache, weights)

    def _model(self, cell: Cell) -> Thunk:
        size, pieces = self.call.latents.shape[-2:], self._pieces

        def rest() -> Tensor:
            hidden = pieces.embed(self.adapter, self.call.latents, None)
            output: Tensor = pieces.head(self.adapter, hidden, self._now[1], *size, None)
            return output

        output = rest()  # the program's own, which a step writes to
        stored = self._with_weights(cell, LayerCache(output.clone(), None, (output.clone(), output.clone())))

        def computed() -> Tensor:
            output.copy_(rest())
            if cell.store_output:
                stored.keep(output)
            return output

        def reused() -> Tensor:
            return output.copy_(stored.reused(pieces, self.batch, self.context.layout))

        return reused if cell.method.reuses_output else computed

    def step_rows(self) -> Mapping[str, float]:
        device, steps = self.adapter.device, self._ahead.steps
        rows = session_rows(self.adapter, self.call, self.given, self.context, self._compile, self._graphs)
        ahead = launched(lambda: self._ahead.begin(self.call), device)
        copies = launched(self._copy, device)
        rows[CALL] = ahead.device / steps + copies.device
        if HOST_STEP in rows:
            rows[HOST_CALL] = ahead.host / steps + copies.host
        else:
            rows[CALL] = max(ahead) / steps + max(copies)
        rows[BEGIN] = max(0.0, rows[BEGIN] - max(ahead))  # the modulations are counted step by step
        return rows

    def _copy(self) -> None:
        """A computed step's inputs, into the buffers that its work reads."""
        for buffer, ahead in zip(self._now, self._ahead.at(0), strict=True):
            buffer.copy_(ahead)
