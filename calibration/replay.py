"""Trying a method on layer l by resuming from l's stored input.

Blocks before l cannot change while l is tried, so only blocks l .. L-1 are run: (L + 1) / 2 blocks a candidate on
average instead of L, the same numbers. Accepting a candidate costs no further run: the blocks after it were run FULL
in the very trial that was accepted, so their inputs and outputs are at hand.

Of a transformer that was registered by its attentions alone, these are the blocks: all else that it computes runs
anew in every trial, and attentions before l give what they gave.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from calibration.probe import Probe, storing
from ditfastattn.cache import Cell, LayerCache
from plans import Method


class ReplayStep:
    """One step; an attempt at layer l runs blocks l .. L-1."""

    def __init__(self, probe: Probe, predict: Callable[[], Tensor]) -> None:
        self.layers = probe.layers
        self._probe = probe
        self._predict = predict
        # Of the methods kept so far, with FULL after them: each block's input, and what its cache would hold.
        self._inputs: list[Tensor | None] = [None] * probe.layers
        self._caches: list[LayerCache] = [LayerCache() for _ in range(probe.layers)]
        self._output: Tensor | None = None
        # What each block gave to the model that runs on its own between them, which needs it for its next block.
        self._outputs: list[Tensor | None] = [None] * probe.layers
        # The same of the last attempt.
        self._tried_inputs: list[Tensor | None] = list(self._inputs)
        self._tried_caches: list[LayerCache] = list(self._caches)
        self._tried_output: Tensor | None = None
        self._tried_outputs: list[Tensor | None] = list(self._outputs)
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {})] * probe.layers  # besides the input

    def reference(self) -> Tensor:
        output = self._run(0, Method.FULL)
        self._accept(0)
        return output

    def attempt(self, layer: int, method: Method) -> Tensor:
        return self._run(layer, method)

    def keep(self, layer: int, method: Method) -> None:
        if method is not Method.FULL:
            self._accept(layer)
        kept = self._probe.caches[layer]
        kept.output = self._caches[layer].output  # AST ran on a copy of what is kept, so it leaves it as it is
        if method.refreshes_residual and self._probe.residuals:
            hidden = self._inputs[layer]
            assert hidden is not None
            args, kwargs = self._arguments[layer]
            kept.residual = self._probe.residual(layer, method, hidden, *args, **kwargs)

    def output(self) -> Tensor:
        """Model output of the methods kept."""
        assert self._output is not None, "reference() comes first"
        return self._output

    def _accept(self, layer: int) -> None:
        self._inputs[layer + 1 :] = self._tried_inputs[layer + 1 :]
        self._inputs[layer] = self._tried_inputs[layer]
        self._caches[layer:] = self._tried_caches[layer:]
        self._outputs[layer:] = self._tried_outputs[layer:]
        self._output = self._tried_output

    def _run(self, first: int, method: Method) -> Tensor:
        between = self._probe.adapter.runs_between
        inputs, outputs = list(self._inputs), list(self._outputs)
        caches = [replace(cache) for cache in self._probe.caches]

        def behaviour(layer: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if layer < first and between:
                kept = outputs[layer]
                assert kept is not None
                return kept.clone()  # the model may change it in place
            if layer < first:
                return hidden  # nobody reads it: block ``first`` starts from its stored input
            stored = self._inputs[layer]
            if layer == first and stored is not None and not between:
                hidden = stored
            inputs[layer] = hidden.clone() if between else hidden
            self._arguments[layer] = (args, kwargs)
            cell: Cell = storing(method if layer == first else Method.FULL, residuals=False)
            output = self._probe.run_block(layer, cell, caches[layer], hidden, *args, **kwargs)
            outputs[layer] = output.clone() if between else None
            return output

        output = self._probe.call(self._predict, behaviour)
        self._tried_inputs, self._tried_outputs = inputs, outputs
        self._tried_caches, self._tried_output = caches, output
        return output
