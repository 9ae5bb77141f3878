"""The order in which tokens stand while the blocks run, so that a 1-D window covers a 2-D neighbourhood.

Between position embedding and output projection a transformer is token-wise but for its attention, which does not
mind in which order its tokens come. Permuted once before the first block and back after the last, the same banded
kernel sees other neighbours, at the cost of two gathers a model call.

- ``raster``: row after row, as the paper has it: a window is a few whole rows.
- ``tile``: tile after tile, each row by row.
- ``hilbert``: along a Hilbert curve, stretched to any rectangle.
"""

from collections.abc import Iterable, Iterator, Set
from typing import Any

import torch
from torch import Tensor

from ditfastattn.errors import StepError
from plans import Method, TokenOrder, Window

Grid = tuple[int, int]  # (rows, columns) of the tokens


class Ordering:
    """Permutes hidden states where they enter the blocks and back where they leave; ``raster`` touches nothing.

    Args:
        per_image: the other block inputs, by name or "argument 1", that hold nothing per token.
    """

    def __init__(self, order: TokenOrder, window: Window, per_image: Set[str]) -> None:
        self.order = order
        self._window = window
        self._per_image = per_image
        self._made_for: tuple[Grid, torch.device] | None = None
        self._index = self._inverse = torch.empty(0, dtype=torch.int64)

    def fit(self, grid: Grid, device: torch.device) -> None:
        """Makes the index tensors for a token grid; they stay where they are as long as grid and device do."""
        if self.order == "raster" or (grid, device) == self._made_for:
            return
        index = permutation(self.order, grid, self._window)
        self._index, self._inverse = index.to(device), inverse(index).to(device)
        self._made_for = grid, device

    @property
    def indices(self) -> tuple[Tensor, Tensor] | None:
        """Index tensors (N,) of :meth:`enter` and :meth:`leave`, which are never written to; None in raster order."""
        return None if self.order == "raster" else (self._index, self._inverse)

    def enter(self, hidden: Tensor, *others: Any, **named: Any) -> Tensor:
        """The input of the first block, in this order.

        Args:
            hidden: (B, N, C), in raster order.
            others, named: what else the block was called with.

        Raises:
            StepError: another input that could hold something per token, which would be left in raster order.
        """
        if self.order == "raster":
            return hidden
        placed = {f"argument {place}": value for place, value in enumerate(others, start=1)}
        foreign = [name for name, value in (placed | named).items() if value is not None]
        foreign = [name for name in foreign if name not in self._per_image]
        if foreign:
            raise StepError(
                f"the plan puts the tokens in {self.order} order, but the blocks also take {', '.join(foreign)}, which "
                "would stay in raster order; leave that out, or calibrate with --token-order raster"
            )
        return hidden.index_select(1, self._index)

    def leave(self, hidden: Tensor) -> Tensor:
        """The output of the last block (B, N, C), back in raster order."""
        return hidden if self.order == "raster" else hidden.index_select(1, self._inverse)


def order_for(order: TokenOrder, methods: Iterable[Method]) -> TokenOrder:
    """``order`` if a method looks through the window, else ``raster``: attention over all keys knows no order."""
    return order if any(method.windowed for method in methods) else "raster"


def permutation(order: TokenOrder, grid: Grid, window: Window) -> Tensor:
    """Which token stands where: place i of the order holds token ``permutation[i]`` of the raster.

    Args:
        grid: (h, w), each at least 1.
        window: gives the side of the tiles; the other orders do not look at it.

    Returns:
        (h * w,) int64 on the CPU, every token once.

    Raises:
        ValueError: a grid without tokens, or no such order.
    """
    height, width = grid
    if height < 1 or width < 1:
        raise ValueError(f"a grid of {height} x {width} has no tokens; both sides must be at least 1")
    if order == "raster":
        return torch.arange(height * width)
    if order == "tile":
        cells = _tiles(height, width, tile_side(window))
    elif order == "hilbert":
        cells = hilbert_curve(height, width)
    else:
        raise ValueError(f"there is no token order {order!r}; choose raster, tile or hilbert")
    return torch.tensor([row * width + column for row, column in cells])


def inverse(index: Tensor) -> Tensor:
    """The permutation that undoes ``index`` (N,) int64: ``x[index][inverse(index)]`` is ``x``."""
    undone = torch.empty_like(index)
    undone[index] = torch.arange(len(index), device=index.device)
    return undone


def tile_side(window: Window) -> int:
    """Side of a square tile: the smallest power of two whose square is at least ``left + right``.

    So a window is about as large as a tile, and a power of two cuts the usual grids without a rest. On the demo's
    16 x 16 tokens, with 16 and with 32 keys on each side, it gives 8, which lost less accuracy than 4 and 5.
    """
    side = 1
    while side * side < window.left + window.right:
        side *= 2
    return side


def _tiles(height: int, width: int, side: int) -> Iterator[tuple[int, int]]:
    """Tiles from left to right and top to bottom, smaller at the far edges; (row, column) of each token."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            for row in range(top, min(top + side, height)):
                for column in range(left, min(left + side, width)):
                    yield row, column


def hilbert_curve(height: int, width: int) -> Iterator[tuple[int, int]]:
    """(row, column) of every cell of any rectangle along a curve that keeps near on it what is near in the grid.

    The idea is Hilbert's (Math. Ann. 38, 1891), generalised from powers of two to rectangles by cutting them in
    halves of even length, as in Cerveny's "gilbert" (github.com/jakubcerveny/gilbert). Each cell is a neighbour of the
    one before, except for one diagonal step where the longer side is odd and the shorter even.
    """
    right, down = 1, 1j  # cells are complex numbers, column + row i: turning is a multiplication
    wide = width >= height
    walk = _walk(0, right, width, down, height) if wide else _walk(0, down, height, right, width)
    for cell in walk:
        yield int(cell.imag), int(cell.real)


def _walk(start: complex, along: complex, length: int, aside: complex, depth: int) -> Iterator[complex]:
    """Every cell of a rectangle ``length`` x ``depth`` from the corner ``start`` to the corner at the end of ``along``.

    ``along`` and ``aside`` are unit steps. A long rectangle is cut across into two walks of the same kind; another is
    walked out sideways, along the far side, and back.
    """
    if depth == 1 or length == 1:
        yield from (start + k * (along if depth == 1 else aside) for k in range(max(length, depth)))
    elif 2 * length > 3 * depth:
        cut = _even_half(length)
        yield from _walk(start, along, cut, aside, depth)
        yield from _walk(start + cut * along, along, length - cut, aside, depth)
    else:
        half, cut = length // 2, _even_half(depth)
        yield from _walk(start, aside, cut, along, half)
        yield from _walk(start + cut * aside, along, length, aside, depth - cut)
        corner = start + (length - 1) * along + (cut - 1) * aside
        yield from _walk(corner, -aside, cut, -along, length - half)


def _even_half(size: int) -> int:
    """About half, made even where that leaves a rest: a walk out and back then ends beside where the next begins."""
    half = size // 2
    return half + 1 if half % 2 and size > 2 else half
