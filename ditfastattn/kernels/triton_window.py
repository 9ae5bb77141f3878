"""Window attention in Triton: one pass over the keys of the band, with the residual's arithmetic in its epilogue.

The online softmax is that of FlashAttention-2 (Dao, 2023): running maximum and sum per query, in base 2, in float32.
What is particular here:

- Head dims that are no power of two are split in two column tiles, 72 = 64 + 8 (loaded as 16): padding one tile to
  128 would do 1.6 times the matrix work.
- Only the blocks at the two edges of the band pay for mask arithmetic, a uniform branch in one loop. Three loops
  (edge, interior, edge) would drain the load pipeline twice more.
- On GPUs with tensor memory descriptors (compute capability 9.0 and later) blocks are copied by the copy engine,
  which fills columns and rows outside the tensor with zeros.
"""

# mypy: ignore-errors
# (a kernel has no types that mypy could check, and Triton is optional)

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class Epilogue(IntEnum):
    """What leaves the kernel, where w is the window attention."""

    WINDOW = 0  # w
    ADD = 1  # w + other: a WA_RS step
    SUBTRACT = 2  # other - w: the residual of full attention


@dataclass(frozen=True)
class Config:
    """How the kernel is cut. The result does not depend on it beyond rounding."""

    rows: int  # queries of a program
    keys: int  # keys of a block
    warps: int
    stages: int  # blocks in flight
    registers: int | None = None  # most per thread: fewer let more programs share a multiprocessor
    tma: bool = True  # tensor descriptors where the GPU and the strides allow them
    hopper: bool = False  # hopper_window's kernel, with rows / 64 warpgroups, where it fits


PLAIN = Config(rows=64, keys=64, warps=4, stages=2)  # fits every GPU for head dims up to 128 in half precision


@triton.jit
def _tile(
    source, stride_b, stride_n, stride_h, batch, head, start, tokens,
    FIRST: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, UNIT: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLS) of the tokens from ``start`` and the columns from ``FIRST``; zeros outside (tokens, D)."""
    if TMA:
        tile = source.load([batch, head, start, FIRST]).reshape(ROWS, COLS)
    else:
        row = tl.arange(0, ROWS)
        column = FIRST + tl.arange(0, COLS)
        base = source + (batch.to(tl.int64) * stride_b + start.to(tl.int64) * stride_n + head * stride_h) * UNIT
        mask = (start + row < tokens)[:, None] & (column < D)[None, :]
        tile = tl.load(base + (row * stride_n * UNIT)[:, None] + column[None, :], mask=mask, other=0.0)
    return tile


@triton.jit
def _finish(
    tile, other, stride_b, stride_n, stride_h, out, batch, head, start, heads, tokens,
    FIRST: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, UNIT: tl.constexpr,
    EPILOGUE: tl.constexpr,
):  # fmt: skip
    """The epilogue of one column tile (ROWS, COLS), and its store to the contiguous output."""
    if EPILOGUE != 0:
        old = _tile(
            other, stride_b, stride_n, stride_h, batch, head, start, tokens, FIRST, D, ROWS, COLS, UNIT, False
        ).to(tl.float32)  # fmt: skip
        tile = old + tile if EPILOGUE == 1 else old - tile
    row = tl.arange(0, ROWS)
    column = FIRST + tl.arange(0, COLS)
    mask = (start + row < tokens)[:, None] & (column < D)[None, :]
    base = out + ((batch.to(tl.int64) * tokens + start) * heads + head) * D
    tl.store(base + (row * (heads * D))[:, None] + column[None, :], tile.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "left", "right"])
def window_kernel(
    q, q_rest, k, k_rest, v, v_rest, other, out,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, other_b, other_n, other_h,
    heads, tokens, left, right, scale,
    D: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    UNIT: tl.constexpr, OTHER_UNIT: tl.constexpr, EPILOGUE: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: ROWS queries of one head against the keys of their band.

    ``q, k, v`` and their ``_rest`` are tensor descriptors over (B, H, N, D) if TMA, else pointers (both the same).
    Strides are in units of UNIT elements, so that the compiler knows that rows begin at multiples of it.
    ``scale`` is log2(e) / sqrt(D). REST is 0 if one column tile of MAIN columns covers the head dim.
    """
    blocks = tl.cdiv(tokens, ROWS)
    block = tl.program_id(0) % blocks
    batch = tl.program_id(0) // blocks // heads
    head = tl.program_id(0) // blocks % heads
    first = block * ROWS
    last = tl.minimum(first + ROWS, tokens) - 1

    row = first + tl.arange(0, ROWS)
    lowest = row - left  # first visible key of each query, perhaps negative
    span = (tl.minimum(row + right, tokens - 1) - lowest).to(tl.uint32)

    q_tile = _tile(q, q_b, q_n, q_h, batch, head, first, tokens, 0, D, ROWS, MAIN, UNIT, TMA)
    acc = tl.zeros([ROWS, MAIN], tl.float32)
    if REST > 0:
        q_rest_tile = _tile(q_rest, q_b, q_n, q_h, batch, head, first, tokens, MAIN, D, ROWS, REST, UNIT, TMA)
        acc_rest = tl.zeros([ROWS, REST], tl.float32)
    # Finite, so that a row without a visible key in its first block subtracts no infinities; below any score.
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)

    low = tl.maximum(first - left, 0)
    for step in range(tl.cdiv(tl.minimum(last + right + 1, tokens) - low, KEYS)):
        start = low + step * KEYS
        k_tile = _tile(k, k_b, k_n, k_h, batch, head, start, tokens, 0, D, KEYS, MAIN, UNIT, TMA)
        scores = tl.dot(q_tile, k_tile.T, input_precision=PRECISION)
        if REST > 0:
            k_rest_tile = _tile(k_rest, k_b, k_n, k_h, batch, head, start, tokens, MAIN, D, KEYS, REST, UNIT, TMA)
            scores = tl.dot(q_rest_tile, k_rest_tile.T, scores, input_precision=PRECISION)
        if (start < last - left) | (start + KEYS > tl.minimum(first + right + 1, tokens)):
            key = start + tl.arange(0, KEYS)
            # One unsigned comparison for both ends: keys below the window wrap around to huge distances.
            visible = (key[None, :] - lowest[:, None]).to(tl.uint32) <= span[:, None]
            scores = tl.where(visible, scores, float("-inf"))

        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        top = new_top

        v_tile = _tile(v, v_b, v_n, v_h, batch, head, start, tokens, 0, D, KEYS, MAIN, UNIT, TMA)
        weights = weights.to(v_tile.dtype)
        acc = tl.dot(weights, v_tile, acc * shrink[:, None], input_precision=PRECISION)
        if REST > 0:
            v_rest_tile = _tile(v_rest, v_b, v_n, v_h, batch, head, start, tokens, MAIN, D, KEYS, REST, UNIT, TMA)
            acc_rest = tl.dot(weights, v_rest_tile, acc_rest * shrink[:, None], input_precision=PRECISION)

    share = (1.0 / total)[:, None]
    _finish(acc * share, other, other_b, other_n, other_h, out, batch, head, first, heads, tokens,
            0, D, ROWS, MAIN, OTHER_UNIT, EPILOGUE)  # fmt: skip
    if REST > 0:
        _finish(acc_rest * share, other, other_b, other_n, other_h, out, batch, head, first, heads, tokens,
                MAIN, D, ROWS, REST, OTHER_UNIT, EPILOGUE)  # fmt: skip


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """Column tiles (main, rest), powers of two from 16 up, that cover ``head_dim``; rest is 0 if one tile does."""
    whole = max(16, triton.next_power_of_2(head_dim))
    main = whole // 2
    if head_dim == whole or main < 16:
        return whole, 0
    rest = max(16, triton.next_power_of_2(head_dim - main))
    return (main, rest) if main + rest < whole else (whole, 0)


def has_descriptors(device: torch.device) -> bool:
    """Whether the GPU copies tiles by tensor descriptors."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def hopper() -> Any:
    """The module ``hopper_window``; None where Triton lacks what it imports, which changes with Triton's version."""
    try:
        from ditfastattn.kernels import hopper_window
    except (ImportError, AttributeError):
        return None
    return hopper_window


def _unit(*tensors: Tensor) -> int:
    """8 if every row of every tensor begins at a multiple of 8 elements, so that 16-byte loads are possible."""
    return 8 if all(stride % 8 == 0 for tensor in tensors for stride in tensor.stride()[:3]) else 1


def _strides(tensor: Tensor, unit: int) -> list[int]:
    return [stride // unit for stride in tensor.stride()[:3]]


def _describable(tensor: Tensor) -> bool:
    return tensor.data_ptr() % 16 == 0 and all(0 < stride < 2**31 for stride in tensor.stride()[:3])


def _descriptors(tensor: Tensor, rows: int, columns: tuple[int, int]) -> list[Any]:
    """Descriptors over (B, H, N, D) whose blocks are (1, 1, rows, columns), one for each column tile."""
    batch, tokens, heads, head_dim = tensor.shape
    b, n, h, _ = tensor.stride()
    tiles = [
        TensorDescriptor(tensor, [batch, heads, tokens, head_dim], [b, h, n, 1], [1, 1, rows, c]) for c in columns if c
    ]
    return [tiles[0], tiles[-1]]


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    other: Tensor | None,
    out: Tensor,
    left: int,
    right: int,
    epilogue: Epilogue,
    config: Config,
    precision: str = "ieee",
) -> None:
    """Write the window attention of ``q, k, v`` (B, N, H, D; last dimension contiguous) to ``out`` (contiguous)."""
    batch, tokens, heads, head_dim = q.shape
    if min(q.shape) == 0:
        return
    if config.hopper:
        special = hopper()
        if special is not None and special.fits([q, k, v, out] if other is None else [q, k, v, out, other]):
            special.launch(q, k, v, other, out, left, right, epilogue, config)
            return
        config = PLAIN
    columns = split_head_dim(head_dim)
    unit = _unit(q, k, v)
    tma = config.tma and unit == 8 and has_descriptors(q.device) and all(map(_describable, (q, k, v)))
    if tma:
        sources = [
            *_descriptors(q, config.rows, columns),
            *_descriptors(k, config.keys, columns),
            *_descriptors(v, config.keys, columns),
        ]
    else:
        sources = [q, q, k, k, v, v]
    # A source that is not read still has a type.
    old = out if other is None else other
    old_unit = _unit(old)
    window_kernel[(triton.cdiv(tokens, config.rows) * batch * heads,)](
        *sources, old, out,
        *_strides(q, unit), *_strides(k, unit), *_strides(v, unit), *_strides(old, old_unit),
        heads, tokens, min(left, tokens), min(right, tokens), math.log2(math.e) / math.sqrt(head_dim),
        D=head_dim, MAIN=columns[0], REST=columns[1], ROWS=config.rows, KEYS=config.keys,
        UNIT=unit, OTHER_UNIT=old_unit, EPILOGUE=int(epilogue), TMA=tma, PRECISION=precision,
        num_warps=config.warps, num_stages=config.stages, maxnreg=config.registers,
    )  # fmt: skip
