"""A plan's steps at one shape, prepared before the first of them runs: fixed buffers, and CUDA graphs over them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ditfastattn.ahead import Ahead
from ditfastattn.arena import Arena, Place, StepPlaces
from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.capture import capture as capture_graph
from ditfastattn.models.base import Call, PreparedModel
from ditfastattn.pieces import Pieces
from ditfastattn.prepared import (
    BlockInputs,
    JointWeights,
    Stored,
    run_prepared_block,
    run_prepared_parts,
    weights_tensor,
)
from ditfastattn.runner import Run
from plans import SiteName

# All that tells one step's work from another's: what every layer of each site does; of a skipped step, the model alone.
Kind = tuple[tuple[SiteName, tuple[tuple[Cell, StepPlaces], ...]], ...]


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
        self.arenas = {site: Arena.of(columns) for site, columns in run.cells.items()}
        latents, model = run.call.latents, run.plan.model
        self._latents = latents.clone()
        self._batch, _, self._height, self._width = latents.shape
        timesteps = torch.tensor(run.plan.sampler.timesteps[run.entered_at :], device=latents.device)
        self._ahead = Ahead(adapter, run.call, timesteps)
        self._modulation, self._head_modulation = (first.clone() for first in self._ahead.at(0))
        self._context = tuple(tensor.clone() for tensor in adapter.context(run.call))
        self._joint = [JointWeights(block.joint_weights()) for block in adapter.blocks]
        self._stores: dict[SiteName, Tensor] = {}
        for site in [site for site in run.cells if site != "model"]:
            shape = (self.arenas[site].nbytes(self._batch, 1), model.tokens, model.heads, model.head_dim)
            self._stores[site] = torch.zeros(shape, dtype=self._modulation.dtype, device=latents.device)
        self._forecasts = {site: self._weights(columns) for site, columns in run.cells.items() if _forecasts(columns)}
        self._part_layers = adapter.part_layers
        order = run.ordering.indices
        self._enter: Tensor | None = order[0] if order else None
        self._leave: Tensor | None = order[1] if order else None
        self._output: Tensor | None = None
        self._kinds = [self._kind(step) for step in range(run.entered_at, run.plan.steps)]
        self._rewritten = [  # before each step: the weights of its forecasts
            [
                (buffer, table[index])
                for site, (buffer, table) in self._forecasts.items()
                if any(cell.method.forecasts for cell, _ in dict(kind).get(site, ()))
            ]
            for index, kind in enumerate(self._kinds)
        ]
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
        seen: set[tuple[SiteName, int, Cell, tuple[int, ...]]] = set()  # layers may differ: each does its work once
        for kind in dict.fromkeys(self._kinds):
            work = {
                (site, layer, cell, _sizes(places))
                for site, layers in kind
                for layer, (cell, places) in enumerate(layers)
            }
            if not work <= seen:
                self._compute(kind)
                seen |= work
            if capture:
                pool = next(iter(self._graphs.values())).pool() if self._graphs else None
                self._graphs[kind] = capture_graph(partial(self._compute, kind), pool)
            progress()
        if capture:
            self._ahead.capture()
            self._replays = [self._graphs[kind] for kind in self._kinds]
        self.seconds = time.perf_counter() - begin

    @property
    def graphs(self) -> int:
        return len(self._graphs)

    def store_bytes(self) -> dict[SiteName, int]:
        """What the arenas take, by site."""
        return {site: store.nbytes for site, store in self._stores.items()}

    @property
    def predicted_bytes(self) -> dict[SiteName, int]:
        """What the arenas take by the plan alone, by site."""
        width = {site: self._run.row_bytes(site) for site in self.arenas}
        width["model"] = self._run.plan.model.out_channels * self._height * self._width * self._run.itemsize
        return {site: arena.nbytes(self._batch, width[site]) for site, arena in self.arenas.items()}

    # -------------------------------------------------------------------------------------------------------- a run

    def begin(self, call: Call) -> None:
        """A run with the condition of ``call``."""
        for joint in self._joint:
            joint.refresh()
        self._ahead.begin(call)
        for buffer, tensor in zip(self._context, self._adapter.context(call), strict=True):
            buffer.copy_(tensor)

    def step(self, step: int, latents: Tensor) -> Tensor:
        """The model output (B, C_out, h, w) of a step, the caller's to keep."""
        index = step - self._run.entered_at
        kind = self._kinds[index]
        if not _skips(kind):
            self._read(index, latents)
        for buffer, row in self._rewritten[index]:
            buffer.copy_(row)
        if self._replays:
            self._replays[index].replay()
        else:
            self._compute(kind)
        assert self._output is not None
        return self._output.clone()

    def _read(self, index: int, latents: Tensor) -> None:
        """Fills the buffers that a computed step reads."""
        self._latents.copy_(latents)
        for buffer, ahead in zip((self._modulation, self._head_modulation), self._ahead.at(index), strict=True):
            buffer.copy_(ahead)

    def _kind(self, step: int) -> Kind:
        index = step - self._run.entered_at
        output = self._run.output_cell(step)
        skips = output is not None and output.method.reuses_output
        sites: list[SiteName] = ["model"] if skips else list(self._run.cells)
        return tuple(
            (
                site,
                tuple(
                    (_work_of(cells[index]), places[index])
                    for cells, places in zip(self._run.cells[site], self.arenas[site].places, strict=True)
                ),
            )
            for site in sites
        )

    def _weights(self, columns: Sequence[tuple[Cell, ...]]) -> tuple[Tensor, Tensor]:
        """Of a site's forecasts: a buffer (L, 4) for those of the current step, and all of them (S, L, 4)."""
        steps = zip(*columns, strict=True)
        table = torch.stack([weights_tensor([cell.weights for cell in row], self._modulation) for row in steps])
        return torch.zeros_like(table[0]), table

    # ------------------------------------------------------------------------------------------------------- a step

    def _compute(self, kind: Kind) -> None:
        work = dict(kind)
        if _skips(kind):
            assert self._output is not None
            forecast = self._stored("model", 0, *work["model"][0])
            self._output.copy_(forecast.reused(self._pieces, self._batch, self._run.layout))
            return
        hidden = self._pieces.embed(self._adapter, self._latents, self._enter)
        for layer in range(len(work["attn"])):
            hidden = self._block(layer, work, hidden)
        size = (self._height, self._width)
        output = self._pieces.head(self._adapter, hidden, self._head_modulation, *size, self._leave)
        if self._output is None:
            self._output = torch.empty_like(output)
            if "model" in self.arenas:
                rows = self.arenas["model"].nbytes(self._batch, 1)
                self._stores["model"] = output.new_zeros((rows, *output.shape[1:]))
        self._output.copy_(output)
        if "model" in work and work["model"][0][0].store_output:
            self._stored("model", 0, *work["model"][0]).keep(output)

    def _block(self, layer: int, work: Mapping[SiteName, Sequence[tuple[Cell, StepPlaces]]], hidden: Tensor) -> Tensor:
        block, joint = self._adapter.blocks[layer], self._joint[layer].tensors
        inputs = BlockInputs(block, self._modulation[layer], self._context, joint)
        attention = self._stored("attn", layer, *work["attn"][layer])
        layers = self._part_layers[layer].items()
        parts = {site: self._stored(site, index, *work[site][index]) for site, index in layers if site in work}
        run = (self._run.contexts["attn"], self._pieces, hidden)
        if not parts:
            return run_prepared_block(inputs, attention, *run)
        return run_prepared_parts(inputs, attention, parts, *run)

    def _stored(self, site: SiteName, layer: int, cell: Cell, places: StepPlaces) -> Stored:
        """What a layer reads in a step, or writes to."""
        outputs = [self._view(site, place) for place in places.outputs]
        if site != "model":
            outputs = [output.flatten(2) for output in outputs]
        residual = None if places.residual is None else self._view(site, places.residual)
        cache = LayerCache(outputs[0] if outputs else None, residual, tuple(outputs[1:]))
        weights = self._forecasts[site][0][layer] if cell.method.forecasts else None
        return Stored(cell, cache, cache, weights)

    def _view(self, site: SiteName, place: Place) -> Tensor:
        """The stored tensor at ``place``: (B or B/2, N, H, D), of the model (B, C_out, h, w)."""
        store = self._stores[site]
        half = store.shape[0] // self.arenas[site].halves
        rows = self._batch if place.rows is Rows.WHOLE_BATCH else self._batch // 2
        return store[place.offset * half :][:rows]


def _work_of(cell: Cell) -> Cell:
    """The cell without what makes no other work of it: weights come from a buffer, places from the arena."""
    return replace(cell, older=0, free_outputs=0, free_residual=False, weights=())


def _skips(kind: Kind) -> bool:
    return kind[0][0] == "model"


def _forecasts(columns: Sequence[tuple[Cell, ...]]) -> bool:
    return any(cell.method.forecasts for column in columns for cell in column)


def _sizes(places: StepPlaces) -> tuple[int, ...]:
    return tuple(place.rows if place else 0 for place in (*places.outputs, places.residual))
