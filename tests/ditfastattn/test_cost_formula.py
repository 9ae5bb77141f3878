"""MACs and bytes by formula against counts that know nothing of it: torch's counters, masks, operands one by one."""

from typing import Any

import pytest
import torch
from small_models import random_plan, small_pipeline, small_transformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.cost import LayerShape, layer_work, plan_work
from ditfastattn.execute import Context, attention_output
from ditfastattn.kernels.base import Kernel, window_mask
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from plans import Method, Window
from plans.macs import plan_macs

SHAPE = LayerShape(batch=4, tokens=16, heads=2, head_dim=24)
WINDOW = Window(left=3, right=1)
WHOLE, HALF = Rows.WHOLE_BATCH, Rows.CONDITIONAL_HALF
CELLS = [
    Cell(Method.FULL),
    Cell(Method.FULL, store_residual=WHOLE),
    Cell(Method.FULL, store_residual=HALF, store_output=WHOLE),
    Cell(Method.ASC),
    Cell(Method.ASC, store_residual=HALF),
    Cell(Method.WA_RS),
    Cell(Method.WA_RS_ASC),
    Cell(Method.AST),
]


@torch.library.custom_op("cost_test::full", mutates_args=())
def full_op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q * 1.0


@torch.library.custom_op("cost_test::window", mutates_args=())
def window_op(q: Tensor, k: Tensor, v: Tensor, add: Tensor | None) -> Tensor:
    return q * 1.0


@torch.library.custom_op("cost_test::residual", mutates_args=())
def residual_op(q: Tensor, k: Tensor, v: Tensor, full: Tensor) -> Tensor:
    return q * 1.0


class Operators(Kernel):
    """Every core one operator, as a fused kernel is; the values do not matter."""

    name = "operators"

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        return []

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return full_op(q, k, v)

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        return window_op(q, k, v, add)

    def residual(
        self, q: Tensor, k: Tensor, v: Tensor, full: Tensor, window: Window, out: Tensor | None = None
    ) -> Tensor:
        return residual_op(q, k, v, full)


class Matmuls(Operators):
    """Every core as products that torch's counter knows, the window's pairs only where its mask has them."""

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1)
        return (weights @ v.transpose(1, 2)).transpose(1, 2)

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        """Row by row over the keys that it sees: no product with a hidden key is made, none is counted."""
        seen = window_mask(q.shape[1], window, q.device)
        rows = [self.full(q[:, i : i + 1], k[:, mask], v[:, mask]) for i, mask in enumerate(seen)]
        return torch.cat(rows, dim=1)

    def residual(
        self, q: Tensor, k: Tensor, v: Tensor, full: Tensor, window: Window, out: Tensor | None = None
    ) -> Tensor:
        return full - self.window(q, k, v, window)


class BytesMoved(TorchDispatchMode):
    """Operands read and results written by projections, cores and copies; views and elementwise work left out."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = self.cores = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        flat = [t for arg in args for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, Tensor)]
        moved = sum(t.nbytes for t in {id(t): t for t in flat}.values())
        if name.startswith("aten.addmm"):
            self.projections += moved + result.nbytes
        elif name.startswith("cost_test"):
            self.cores += moved + result.nbytes
        elif name.startswith("aten.cat"):
            self.copies += moved + result.nbytes
        return result


def run(cell: Cell, kernel: Kernel, counter: Any) -> Any:
    """One layer's self-attention under a counter, its stored tensors at hand."""
    block = adapt(small_transformer(layers=1)).blocks[0]
    x, labels = torch.randn(4, 16, 48), torch.tensor([1, 2, 1000, 1000])
    state = block.begin(x, timestep=torch.full((4,), 500), class_labels=labels, skip_attention=False)
    rows = 2 if cell.method.shares_guidance else 4
    cache = LayerCache(output=torch.randn(4, 16, 48), residual=torch.randn(rows, 16, 2, 24))
    with counter:
        attention_output(block, state, cell, cache, Context(kernel, WINDOW, Layout.COND_FIRST))
    return counter


@pytest.mark.parametrize("cell", CELLS, ids=str)
@torch.no_grad()
def test_macs_are_those_that_torch_counts(cell: Cell) -> None:
    counted = run(cell, Matmuls(), FlopCounterMode(display=False)).get_flop_counts().get("Global", {})
    flops = {str(op): number for op, number in counted.items()}
    projections = flops.get("aten.addmm", 0)
    assert 2 * layer_work(cell, SHAPE, WINDOW, 4).macs == sum(flops.values())
    assert 2 * layer_work(cell, SHAPE, WINDOW, 4, "core").macs == sum(flops.values()) - projections
    assert (projections == 0) == (cell.method is Method.AST)


@pytest.mark.parametrize("cell", CELLS, ids=str)
@torch.no_grad()
def test_bytes_are_those_of_every_operand(cell: Cell) -> None:
    counted = run(cell, Operators(), BytesMoved())
    assert layer_work(cell, SHAPE, WINDOW, 4, "core").bytes == counted.cores
    assert layer_work(cell, SHAPE, WINDOW, 4).bytes == counted.cores + counted.projections + counted.copies
    assert layer_work(cell, SHAPE, WINDOW, 2).bytes * 2 == layer_work(cell, SHAPE, WINDOW, 4).bytes


@pytest.mark.parametrize("window", [Window(left=0, right=0), Window(left=2, right=9), Window(left=16, right=16)])
def test_window_macs_are_the_pairs_of_the_mask(window: Window) -> None:
    pairs = int(window_mask(16, window, torch.device("cpu")).sum())
    work = layer_work(Cell(Method.WA_RS), SHAPE, window, 2, "core")
    assert work.macs == 4 * 2 * pairs * 48


def test_a_plan_is_the_sum_of_its_cells() -> None:
    plan = random_plan(small_pipeline(), 8)
    for convention in ("module", "core"):
        macs = plan_macs(plan, convention)
        assert plan_work(plan, 6, 2, convention).macs == 6 * (macs.total + macs.residual_store)
    assert plan_work(plan, 4, 2).bytes > plan_work(plan, 4, 2, "core").bytes > 0


def test_halves_need_an_even_batch() -> None:
    odd = LayerShape(batch=3, tokens=16, heads=2, head_dim=24)
    for cell in (Cell(Method.ASC), Cell(Method.FULL, store_residual=HALF)):
        with pytest.raises(ValueError, match="a batch of 3 rows has no guidance halves"):
            layer_work(cell, odd, WINDOW, 2)
    assert layer_work(Cell(Method.WA_RS), odd, WINDOW, 2).macs > 0


def test_a_forecast_multiplies_nothing_and_moves_what_it_reads_and_writes() -> None:
    for method, moved in ((Method.AST, 0), (Method.AST_1, 3), (Method.AST_2, 4)):
        assert layer_work(Cell(method), SHAPE, WINDOW, 2).macs == 0
        assert layer_work(Cell(method), SHAPE, WINDOW, 2).bytes == moved * 4 * 16 * 48 * 2
        assert layer_work(Cell(method), SHAPE, WINDOW, 2, "core").bytes == 0
