"""Trying a method by running the whole model: Algorithm 1 as it stands, slow, the standard for ``replay``."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from calibration.probe import Probe
from ditfastattn.cache import Cell
from plans import Method


class PlainStep:
    """One step; every attempt runs every block."""

    def __init__(self, probe: Probe, predict: Callable[[], Tensor]) -> None:
        self.layers = probe.layers
        self._probe = probe
        self._predict = predict
        self._methods = [Method.FULL] * probe.layers

    def reference(self) -> Tensor:
        return self._run(self._methods)

    def attempt(self, layer: int, method: Method) -> Tensor:
        return self._run([*self._methods[:layer], method, *self._methods[layer + 1 :]])

    def keep(self, layer: int, method: Method) -> None:
        self._methods[layer] = method

    def output(self) -> Tensor:
        """Model output of the methods kept; fills the probe's caches."""
        return self._probe.commit(self._predict, self._methods)

    def _run(self, methods: list[Method]) -> Tensor:
        def behaviour(layer: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            scratch = replace(self._probe.caches[layer])
            return self._probe.run_block(layer, Cell(methods[layer]), scratch, hidden, *args, **kwargs)

        return self._probe.call(self._predict, behaviour)
