"""Window attention for Hopper GPUs in Gluon, with the contract of ``triton_window``'s kernel.

Its parts are in ``hopper_roles``. Gluon is an experimental part of Triton, so only versions of it are used that the GPU
tests have passed with; elsewhere, and for tensors that the copy engine cannot read, the plain kernel runs.
"""

# mypy: ignore-errors
# (a kernel has no types that mypy could check, and Triton is optional)

import math
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ditfastattn.kernels.hopper_roles import GROUP, copier, worker
from ditfastattn.kernels.triton_window import Config, Epilogue, split_head_dim

ROWS = GROUP.value
COPIER_REGISTERS = gl.constexpr(24)  # the least there is
REGISTERS = {2: 240, 3: 160}  # of a worker's thread, by the number of warpgroups: all that a multiprocessor has
SHARED_BYTES = 227 * 1024 - 2048  # of a program, less barriers and what Triton hands to the warps
MOST_STAGES = 6  # more were no faster


@gluon.jit(do_not_specialize=["heads", "tokens", "left", "right", "tiles"])
def hopper_kernel(
    q, q_rest, k, k_rest, v, v_rest, other, other_rest, out, out_rest,
    heads, tokens, left, right, scale, tiles,
    MAIN: gl.constexpr, REST: gl.constexpr, GROUPS: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
    EPILOGUE: gl.constexpr, BESIDE: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """One program: every ``num_programs``-th tile of GROUPS * GROUP queries of one head.

    The tensors are descriptors over (B, H, N, D). ``scale`` is log2(e) / sqrt(D). REST is 0 if one column tile of MAIN
    columns covers the head dim; then the buffers ``*_r`` are not used.
    """
    dtype: gl.constexpr = q.dtype
    RC: gl.constexpr = REST if REST > 0 else 16
    R_ROWS: gl.constexpr = GROUP if REST > 0 else 8
    R_KEYS: gl.constexpr = KEYS if REST > 0 else 8
    MAIN_LAYOUT: gl.constexpr = gl.NVMMASharedLayout(min(128, MAIN * 2), 16, 2)
    REST_LAYOUT: gl.constexpr = gl.NVMMASharedLayout(min(128, RC * 2), 16, 2)
    q_s = gl.allocate_shared_memory(dtype, [GROUPS, GROUP, MAIN], MAIN_LAYOUT)
    k_s = gl.allocate_shared_memory(dtype, [STAGES, KEYS, MAIN], MAIN_LAYOUT)
    v_s = gl.allocate_shared_memory(dtype, [STAGES, KEYS, MAIN], MAIN_LAYOUT)
    o_s = gl.allocate_shared_memory(dtype, [GROUPS, GROUP, MAIN], MAIN_LAYOUT)  # the other operand, then the output
    q_r = gl.allocate_shared_memory(dtype, [GROUPS, R_ROWS, RC], REST_LAYOUT)
    k_r = gl.allocate_shared_memory(dtype, [STAGES, R_KEYS, RC], REST_LAYOUT)
    v_r = gl.allocate_shared_memory(dtype, [STAGES, R_KEYS, RC], REST_LAYOUT)
    o_r = gl.allocate_shared_memory(dtype, [GROUPS, R_ROWS, RC], REST_LAYOUT)
    # A ring of blocks of keys and values for all warpgroups; queries and the other operand for each its own.
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    q_full = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    o_full = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    o_empty = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    for i in gl.static_range(GROUPS):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
        mbarrier.init(o_full.index(i), count=1)
        mbarrier.init(o_empty.index(i), count=1)
    fence_async_shared()

    # Written out: arguments kept in a variable would lose that they are constants.
    if GROUPS == 2:
        gl.warp_specialize([
            (worker, (
                0, out, out_rest, q_s, q_r, k_s, k_r, v_s, v_r, o_s, o_r, full, empty, q_full, q_empty, o_full, o_empty,
                heads, tokens, left, right, scale, tiles, MAIN, REST, GROUPS, KEYS, STAGES, EPILOGUE, BESIDE,
            )),
            (worker, (
                1, out, out_rest, q_s, q_r, k_s, k_r, v_s, v_r, o_s, o_r, full, empty, q_full, q_empty, o_full, o_empty,
                heads, tokens, left, right, scale, tiles, MAIN, REST, GROUPS, KEYS, STAGES, EPILOGUE, BESIDE,
            )),
            (copier, (
                q, q_rest, k, k_rest, v, v_rest, other, other_rest, q_s, q_r, k_s, k_r, v_s, v_r, o_s, o_r,
                full, empty, q_full, q_empty, o_full, o_empty, heads, tokens, left, right, tiles,
                MAIN, REST, GROUPS, KEYS, STAGES, EPILOGUE,
            )),
        ], [4, 1], [REGISTERS, COPIER_REGISTERS])  # fmt: skip
    else:
        gl.warp_specialize([
            (worker, (
                0, out, out_rest, q_s, q_r, k_s, k_r, v_s, v_r, o_s, o_r, full, empty, q_full, q_empty, o_full, o_empty,
                heads, tokens, left, right, scale, tiles, MAIN, REST, GROUPS, KEYS, STAGES, EPILOGUE, BESIDE,
            )),
            (worker, (
                1, out, out_rest, q_s, q_r, k_s, k_r, v_s, v_r, o_s, o_r, full, empty, q_full, q_empty, o_full, o_empty,
                heads, tokens, left, right, scale, tiles, MAIN, REST, GROUPS, KEYS, STAGES, EPILOGUE, BESIDE,
            )),
            (worker, (
                2, out, out_rest, q_s, q_r, k_s, k_r, v_s, v_r, o_s, o_r, full, empty, q_full, q_empty, o_full, o_empty,
                heads, tokens, left, right, scale, tiles, MAIN, REST, GROUPS, KEYS, STAGES, EPILOGUE, BESIDE,
            )),
            (copier, (
                q, q_rest, k, k_rest, v, v_rest, other, other_rest, q_s, q_r, k_s, k_r, v_s, v_r, o_s, o_r,
                full, empty, q_full, q_empty, o_full, o_empty, heads, tokens, left, right, tiles,
                MAIN, REST, GROUPS, KEYS, STAGES, EPILOGUE,
            )),
        ], [4, 4, 1], [REGISTERS, REGISTERS, COPIER_REGISTERS])  # fmt: skip


@cache
def _gpu_fits(device: torch.device) -> bool:
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return version == (3, 6) and device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def cuts(q: Tensor) -> list[Config]:
    """Cuts worth measuring for inputs like ``q`` (B, N, H, D); none where this kernel is not used."""
    columns = sum(split_head_dim(q.shape[3]))
    if q.dtype not in (torch.float16, torch.bfloat16) or columns > 128 or not _gpu_fits(q.device):
        return []
    found = []
    for groups, keys in ((2, 64), (3, 64), (2, 128)):
        room = SHARED_BYTES - 2 * 2 * groups * ROWS * columns
        stages = min(MOST_STAGES, room // (2 * 2 * keys * columns))
        if stages >= 3:  # with two, a block's successor would wait for the slot of its predecessor, which is in use
            found.append(Config(groups * ROWS, keys, warps=4 * groups, stages=stages, hopper=True))
    return found


def fits(tensors: list[Tensor]) -> bool:
    """Whether this kernel runs here and can copy the (B, N, H, D) tensors: rows begin at multiples of 16 bytes."""
    return _gpu_fits(tensors[0].device) and all(
        tensor.dtype == tensors[0].dtype
        and tensor.data_ptr() % 16 == 0
        and all(0 < stride < 2**31 and stride * tensor.element_size() % 16 == 0 for stride in tensor.stride()[:3])
        for tensor in tensors
    )


def _descriptors(tensor: Tensor, rows: int, columns: tuple[int, int]) -> list[Any]:
    """Descriptors over (B, H, N, D) whose blocks are (1, 1, rows, columns), one for each column tile."""
    batch, tokens, heads, head_dim = tensor.shape
    b, n, h, _ = tensor.stride()
    tiles = [
        TensorDescriptor(
            tensor, [batch, heads, tokens, head_dim], [b, h, n, 1], [1, 1, rows, c],
            gl.NVMMASharedLayout(min(128, c * 2), 16, 4),
        )
        for c in columns if c
    ]  # fmt: skip
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
) -> None:
    """As ``triton_window.launch``, for a cut of ``cuts`` and tensors that fit."""
    batch, tokens, heads, head_dim = q.shape
    columns = split_head_dim(head_dim)
    groups = config.rows // ROWS
    tiles = triton.cdiv(tokens, config.rows) * batch * heads
    programs = min(tiles, torch.cuda.get_device_properties(q.device).multi_processor_count)
    hopper_kernel[(programs,)](
        *_descriptors(q, ROWS, columns),
        *_descriptors(k, config.keys, columns),
        *_descriptors(v, config.keys, columns),
        *_descriptors(out if other is None else other, ROWS, columns),
        *_descriptors(out, ROWS, columns),
        heads, tokens, min(left, tokens), min(right, tokens), math.log2(math.e) / math.sqrt(head_dim), tiles,
        MAIN=columns[0], REST=columns[1], GROUPS=groups, KEYS=config.keys, STAGES=config.stages,
        EPILOGUE=int(epilogue), BESIDE=groups == 2 or sum(columns) <= 80, REGISTERS=REGISTERS[groups],
        num_warps=4,
    )  # fmt: skip
