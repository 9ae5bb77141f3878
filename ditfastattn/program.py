"""A plan's steps at one shape, prepared before the first of them runs: fixed buffers, and CUDA graphs over them."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ditfastattn.arena import Arena, Place, StepPlaces
from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.models.base import Call, Conditioning, PreparedModel
from ditfastattn.pieces import Pieces
from ditfastattn.prepared import BlockInputs, JointWeights, run_prepared_block
from ditfastattn.runner import Run

ROWS_AHEAD = 256  # rows of modulation computed at a time: enough to read the weights seldom, little to keep

Kind = tuple[tuple[Cell, StepPlaces], ...]  # all that tells one step's work from another's


class CaptureError(RuntimeError):
    """CUDA refused to record a step; the message says why."""


class Program:
    """Runs the steps of one plan for one shape of latents, entered at one step.

    Buffers never move: latents in, model output out, the modulation of the current step, what all blocks read, and the
    arena of stored tensors. A step is a function of these alone, so it can be captured once and replayed; steps that do
    the same work share a graph.
    """

    def __init__(self, adapter: PreparedModel, run: Run, pieces: Pieces) -> None:
        self._adapter = adapter
        self._pieces = pieces
        self._run = run
        self.arena = Arena.of(run.cells)
        latents, model = run.call.latents, run.plan.model
        self._latents = latents.clone()
        self._timesteps = torch.tensor(run.plan.sampler.timesteps, device=latents.device)
        self._batch, _, self._height, self._width = latents.shape
        first = self._first_conditioning(run.call)
        self._modulation, self._head_modulation = first.blocks[0].clone(), first.head[0].clone()
        self._context = tuple(tensor.clone() for tensor in adapter.context(run.call))
        self._joint = [JointWeights(block.joint_weights()) for block in adapter.blocks]
        rows = self.arena.nbytes(self._batch, 1)
        dtype = self._modulation.dtype
        self._store = torch.zeros((rows, model.tokens, model.heads, model.head_dim), dtype=dtype, device=latents.device)
        order = run.ordering.indices
        self._enter: Tensor | None = order[0] if order else None
        self._leave: Tensor | None = order[1] if order else None
        self._output: Tensor | None = None
        self._kinds = [self._kind(step) for step in range(run.entered_at, run.plan.steps)]
        self._graphs: dict[Kind, torch.cuda.CUDAGraph] = {}
        self._replays: list[torch.cuda.CUDAGraph] = []  # one a step; empty without capture
        self.seconds = 0.0

    # ------------------------------------------------------------------------------------------------- preparation

    @property
    def kinds(self) -> int:
        """Steps that differ in what they do."""
        return len(set(self._kinds))

    def prepare(self, capture: bool, progress: Callable[[], object]) -> None:
        """Runs every kind of work once, so that all is compiled and tuned, then captures every kind of step.

        ``progress`` is called after each kind.
        """
        begin = time.perf_counter()
        seen: set[tuple[int, Cell, tuple[int, ...]]] = set()  # layers may differ: each does its work once
        for kind in dict.fromkeys(self._kinds):
            work = {(layer, cell, _sizes(places)) for layer, (cell, places) in enumerate(kind)}
            if not work <= seen:
                self._compute(kind)
                seen |= work
            if capture:
                self._graphs[kind] = self._captured(kind)
            progress()
        if capture:
            self._replays = [self._graphs[kind] for kind in self._kinds]
        self.seconds = time.perf_counter() - begin

    def _captured(self, kind: Kind) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        # Only this thread's calls are recorded: another pipeline may run beside this one.
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._compute(kind)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(f"a step could not be captured ({str(error).splitlines()[0]})") from error
        return graph

    @property
    def graphs(self) -> int:
        return len(self._graphs)

    def store_bytes(self) -> int:
        return self._store.nbytes

    @property
    def predicted_bytes(self) -> int:
        """What the arena takes by the plan alone."""
        return self.arena.nbytes(self._batch, self._run.row_bytes("attn"))

    # -------------------------------------------------------------------------------------------------------- a run

    def begin(self, call: Call) -> None:
        """A run with the condition of ``call``."""
        self._call = call
        for joint in self._joint:
            joint.refresh()
        self._ahead, self._ahead_from = self._first_conditioning(call), self._run.entered_at
        for buffer, tensor in zip(self._context, self._adapter.context(call), strict=True):
            buffer.copy_(tensor)

    def step(self, step: int, latents: Tensor) -> Tensor:
        """The model output (B, C_out, h, w) of a step, the caller's to keep."""
        if not 0 <= step - self._ahead_from < len(self._ahead.head):
            self._ahead, self._ahead_from = self._conditioning(step, self._call), step
        ahead = step - self._ahead_from
        self._latents.copy_(latents)
        self._modulation.copy_(self._ahead.blocks[ahead])
        self._head_modulation.copy_(self._ahead.head[ahead])
        index = step - self._run.entered_at
        if self._replays:
            self._replays[index].replay()
        else:
            self._compute(self._kinds[index])
        assert self._output is not None
        return self._output.clone()

    def _first_conditioning(self, call: Call) -> Conditioning:
        return self._conditioning(self._run.entered_at, call)

    def _conditioning(self, step: int, call: Call) -> Conditioning:
        """The modulations of the steps from ``step`` on."""
        steps = max(1, ROWS_AHEAD // self._batch)
        return self._adapter.conditioning(self._timesteps[step : step + steps], call)

    def _kind(self, step: int) -> Kind:
        index = step - self._run.entered_at
        return tuple(
            (replace(cells[index], free_output=False, free_residual=False), places[index])
            for cells, places in zip(self._run.cells, self.arena.places, strict=True)
        )

    # ------------------------------------------------------------------------------------------------------- a step

    def _compute(self, kind: Kind) -> None:
        hidden = self._pieces.embed(self._adapter, self._latents, self._enter)
        for layer, (cell, places) in enumerate(kind):
            hidden = self._block(layer, cell, places, hidden)
        size = (self._height, self._width)
        output = self._pieces.head(self._adapter, hidden, self._head_modulation, *size, self._leave)
        if self._output is None:
            self._output = torch.empty_like(output)
        self._output.copy_(output)

    def _block(self, layer: int, cell: Cell, places: StepPlaces, hidden: Tensor) -> Tensor:
        block, joint = self._adapter.blocks[layer], self._joint[layer].tensors
        inputs = BlockInputs(block, self._modulation[layer], self._context, joint)
        output = None if places.output is None else self._view(places.output).flatten(2)
        residual = None if places.residual is None else self._view(places.residual)
        stored = LayerCache(output, residual)  # read by this step, or written to
        return run_prepared_block(inputs, cell, stored, self._run.contexts["attn"], self._pieces, hidden, into=stored)

    def _view(self, place: Place) -> Tensor:
        """The stored tensor at ``place``: (B or B/2, N, H, D)."""
        half = self._store.shape[0] // self.arena.halves
        rows = self._batch if place.rows is Rows.WHOLE_BATCH else self._batch // 2
        return self._store[place.offset * half :][:rows]


def _sizes(places: StepPlaces) -> tuple[int, ...]:
    return tuple(place.rows if place else 0 for place in (places.output, places.residual))
