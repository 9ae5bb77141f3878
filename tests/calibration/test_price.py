"""Methods by price: the least cost under a bound for the sum of squares, where errors have nothing in common."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from calibration.algorithm import choose_by_price
from plans import Method

CANDIDATES = (Method.AST, Method.WA_RS, Method.ASC)
COSTS = {Method.AST: 0.0, Method.WA_RS: 0.2, Method.ASC: 0.3, Method.FULL: 1.0}  # of a layer's own FULL


class Orthogonal:
    """A step whose layers err each in a direction of its own: errors[layer][method]."""

    def __init__(self, errors: list[dict[Method, float]]) -> None:
        self.layers, self.errors = len(errors), errors
        self.error = torch.zeros(self.layers, dtype=torch.float64)
        self.tried: tuple[int, Method] | None = None

    def reference(self) -> Tensor:
        return torch.zeros(self.layers, dtype=torch.float64)

    def attempt(self, layer: int, method: Method) -> Tensor:
        self.tried = (layer, method)
        output = self.error.clone()
        output[layer] = self.errors[layer][method]
        return output

    def keep(self, layer: int, method: Method) -> None:
        if method is not Method.FULL:
            assert self.tried == (layer, method)  # what Step.keep asks for
            self.error[layer] = self.errors[layer][method]


def norm(reference: Tensor, candidate: Tensor) -> float:
    return float((candidate - reference).norm())


errors = st.lists(st.fixed_dictionaries({method: st.floats(0, 1) for method in CANDIDATES}), min_size=1, max_size=4)


@given(errors=errors, price=st.floats(0.05, 3))
def test_it_finds_the_least_total_of_all_combinations(errors: list[dict[Method, float]], price: float) -> None:
    layers = len(errors)

    def total(methods: tuple[Method, ...]) -> float:
        squares = math.fsum(errors[layer].get(method, 0.0) ** 2 for layer, method in enumerate(methods))
        return math.fsum(COSTS[method] / layers for method in methods) + squares / price**2

    step = Orthogonal(errors)
    found = choose_by_price(step, CANDIDATES, norm, price, lambda layer, method: COSTS[method] / layers)
    best = min(map(total, itertools.product((*CANDIDATES, Method.FULL), repeat=layers)))
    assert total(found.methods) == pytest.approx(best, abs=1e-9)
    assert [loss is None for loss in found.losses] == [method is Method.FULL for method in found.methods]
    last = next((loss for loss in reversed(found.losses) if loss is not None), 0.0)
    assert last == pytest.approx(float(step.error.norm()), abs=1e-9)  # the loss of the whole step
    for trial in found.trials:
        if trial.method is found.methods[trial.layer]:
            assert trial.loss <= trial.limit + 1e-9


def test_a_candidate_that_gives_nan_is_never_taken() -> None:
    step = Orthogonal([{Method.AST: math.nan, Method.WA_RS: 0.1, Method.ASC: 0.5}])
    found = choose_by_price(step, CANDIDATES, norm, 1.0, lambda layer, method: COSTS[method])
    assert found.methods == (Method.WA_RS,)
