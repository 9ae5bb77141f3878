"""What the warps of ``hopper_window``'s kernel do: one copies (TMA), two or three warpgroups compute.

One program a multiprocessor works through many tiles, each warpgroup on 64 queries of a tile. What makes it fast:

- A warpgroup issues the products of the next scores, and of the last weights with their values, before it computes
  the next weights: matrix units and exponentials work at the same time (as in FlashAttention-3, Shah et al., 2024).
- The copying warp runs ahead into the next tile, so that no tile begins or ends with waiting for memory.
- Keys and values are read once for all warpgroups of a tile, but each computes only the blocks of its own band.
"""

# mypy: ignore-errors
# (a kernel has no types that mypy could check, and Triton is optional)

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

GROUP = gl.constexpr(64)  # queries of a warpgroup: the rows of its matrix instruction


@gluon.jit
def _place(tile, heads, tokens, left, right, ROWS: gl.constexpr):
    """Batch, head and first query of a tile, and the keys [low, high) that any of its queries sees."""
    blocks = gl.cdiv(tokens, ROWS)
    first = (tile % blocks) * ROWS
    low = gl.maximum(first - left, 0)
    high = gl.minimum(gl.minimum(first + ROWS, tokens) + right, tokens)
    return tile // blocks // heads, tile // blocks % heads, first, low, high


@gluon.jit
def _next(slot, phase, STAGES: gl.constexpr):
    """The slot of the ring after ``slot``, and the parity of its barriers' phase."""
    slot += 1
    if slot == STAGES:
        slot = 0
        phase ^= 1
    return slot, phase


@gluon.jit
def _copy(source, rest, target, target_rest, bar, batch, head, start, MAIN: gl.constexpr, REST: gl.constexpr):
    """Begin to copy the rows from ``start``; outside the tensor come zeros, which count as bytes too."""
    tma.async_copy_global_to_shared(source, [batch, head, start, 0], bar, target)
    if REST > 0:
        tma.async_copy_global_to_shared(rest, [batch, head, start, MAIN], bar, target_rest)


@gluon.jit
def copier(
    q, q_rest, k, k_rest, v, v_rest, other, other_rest, q_s, q_r, k_s, k_r, v_s, v_r, o_s, o_r,
    full, empty, q_full, q_empty, o_full, o_empty, heads, tokens, left, right, tiles,
    MAIN: gl.constexpr, REST: gl.constexpr, GROUPS: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
    EPILOGUE: gl.constexpr,
):  # fmt: skip
    """One warp: all copies into shared memory, tile after tile."""
    GROUP_BYTES: gl.constexpr = GROUP * (MAIN + REST) * 2
    BLOCK_BYTES: gl.constexpr = 2 * KEYS * (MAIN + REST) * 2
    slot = 0
    phase = 1  # of a fresh barrier this phase counts as complete: nothing is waited for in the first round
    turn = 1
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        batch, head, first, low, high = _place(tile, heads, tokens, left, right, GROUP * GROUPS)
        count = gl.cdiv(high - low, KEYS)
        for i in range(gl.maximum(count, GROUPS)):
            if i < GROUPS:  # one warpgroup's queries before each block, so that the first can begin early
                mbarrier.wait(q_empty.index(i), turn)
                mbarrier.expect(q_full.index(i), GROUP_BYTES)
                _copy(q, q_rest, q_s.index(i), q_r.index(i), q_full.index(i), batch, head, first + GROUP * i,
                      MAIN, REST)  # fmt: skip
            if i < count:
                bar = full.index(slot)
                mbarrier.wait(empty.index(slot), phase)
                mbarrier.expect(bar, BLOCK_BYTES)
                _copy(k, k_rest, k_s.index(slot), k_r.index(slot), bar, batch, head, low + i * KEYS, MAIN, REST)
                _copy(v, v_rest, v_s.index(slot), v_r.index(slot), bar, batch, head, low + i * KEYS, MAIN, REST)
                slot, phase = _next(slot, phase, STAGES)
        if EPILOGUE != 0:
            for i in range(GROUPS):
                mbarrier.wait(o_empty.index(i), turn)
                mbarrier.expect(o_full.index(i), GROUP_BYTES)
                _copy(other, other_rest, o_s.index(i), o_r.index(i), o_full.index(i), batch, head, first + GROUP * i,
                      MAIN, REST)  # fmt: skip
        turn ^= 1


@gluon.jit
def _pass(begin, end, slot, phase, full, empty, STAGES: gl.constexpr):
    """Let blocks go that other warpgroups need. Each is waited for, so that it is not given back a round too early."""
    for _ in range(begin, end):
        mbarrier.wait(full.index(slot), phase)
        mbarrier.arrive(empty.index(slot))
        slot, phase = _next(slot, phase, STAGES)
    return slot, phase


@gluon.jit
def _exp2(x):
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _softmax(
    scores, top, total, start, lowest, span, edge_low, edge_high, scale,
    KEYS: gl.constexpr, S: gl.constexpr, T: gl.constexpr,
):  # fmt: skip
    """Weights of the block from ``start`` (GROUP, KEYS), the running maximum, what shrinks by it, the running sum."""
    if (start < edge_low) | (start + KEYS > edge_high):
        key = start + gl.arange(0, KEYS, gl.SliceLayout(0, S))
        # One unsigned comparison for both ends: keys below the window wrap around to huge distances.
        visible = (key.expand_dims(0) - lowest.expand_dims(1)).to(gl.uint32) <= span.expand_dims(1)
        scores = gl.where(visible, scores, float("-inf"))
    # A thread holds pairs of columns, 8 apart. Reducing pairs first makes short chains of dependent instructions.
    pairs = scores.reshape([GROUP, 2, KEYS // 16, 4, 2])
    block_top = gl.max(gl.max(gl.max(gl.max(pairs, 4), 2), 1), 1)
    new_top = gl.maximum(top, gl.convert_layout(block_top, gl.SliceLayout(1, S), assert_trivial=True) * scale)
    weights = _exp2(scores * scale - new_top.expand_dims(1))
    shrink = _exp2(top - new_top)
    # A thread sums up its own columns; the four threads of a row meet after the last block.
    part = gl.sum(gl.sum(gl.sum(weights.reshape([GROUP, 2, KEYS // 16, 4, 2]), 4), 2), 1)
    less = gl.convert_layout(shrink, gl.SliceLayout(1, T), assert_trivial=True)
    total = total * less.expand_dims(1) + gl.convert_layout(part, T, assert_trivial=True)
    return weights, new_top, shrink, total


@gluon.jit
def _issue_scores(q_s, q_r, k_s, k_r, zero, REST: gl.constexpr):
    scores = warpgroup_mma(q_s, k_s.permute((1, 0)), zero, use_acc=False, is_async=True)
    if REST > 0:
        scores = warpgroup_mma(q_r, k_r.permute((1, 0)), scores, is_async=True)
    return scores


@gluon.jit
def _issue_values(weights, v_s, v_r, acc, acc_rest, A: gl.constexpr, R: gl.constexpr, REST: gl.constexpr):
    left = gl.convert_layout(weights, gl.DotOperandLayout(0, A, 2), assert_trivial=True)
    acc = warpgroup_mma(left, v_s, acc, is_async=True)
    if REST > 0:
        left_rest = gl.convert_layout(weights, gl.DotOperandLayout(0, R, 2), assert_trivial=True)
        acc_rest = warpgroup_mma(left_rest, v_r, acc_rest, is_async=True)
    return acc, acc_rest, left


@gluon.jit
def _settle(acc, acc_rest, kept, REST: gl.constexpr):
    """Wait for all products. What they read and write must not be touched before, so it goes through the wait."""
    if REST > 0:
        acc, acc_rest, kept = warpgroup_mma_wait(0, deps=[acc, acc_rest, kept])
    else:
        acc, kept = warpgroup_mma_wait(0, deps=[acc, kept])
    return acc, acc_rest, kept


@gluon.jit
def _epilogue(acc, share, o_s, LAYOUT: gl.constexpr, EPILOGUE: gl.constexpr):
    """Finish one column tile (GROUP, columns) in ``o_s``, which holds the other operand if there is one."""
    acc = acc * gl.convert_layout(share, gl.SliceLayout(1, LAYOUT)).expand_dims(1)
    if EPILOGUE != 0:
        old = o_s.load(LAYOUT).to(gl.float32)
        acc = old + acc if EPILOGUE == 1 else old - acc
    o_s.store(acc.to(o_s.dtype))


@gluon.jit
def worker(
    group, out, out_rest, q_s, q_r, k_s, k_r, v_s, v_r, o_s, o_r, full, empty, q_full, q_empty, o_full, o_empty,
    heads, tokens, left, right, scale, tiles,
    MAIN: gl.constexpr, REST: gl.constexpr, GROUPS: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
    EPILOGUE: gl.constexpr, BESIDE: gl.constexpr,
):  # fmt: skip
    """One warpgroup: the queries [group * GROUP, (group + 1) * GROUP) of every tile.

    BESIDE: whether the softmax runs beside the products with the values. That takes registers for two blocks' weights.
    """
    RC: gl.constexpr = REST if REST > 0 else 16
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])  # of scores
    A: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, MAIN, 16])  # of the output's column tiles
    R: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, RC, 16])
    # Of sums (GROUP, 4): the column is the thread's place among the four that share a row of S.
    T: gl.constexpr = gl.DistributedLinearLayout(
        [[8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 4]
    )
    q_s, q_r, o_s, o_r = q_s.index(group), q_r.index(group), o_s.index(group), o_r.index(group)
    q_full, q_empty, o_full, o_empty = (
        q_full.index(group), q_empty.index(group), o_full.index(group), o_empty.index(group)
    )  # fmt: skip
    zero = gl.zeros([GROUP, KEYS], gl.float32, S)
    slot = 0
    phase = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        batch, head, first, low, high = _place(tile, heads, tokens, left, right, GROUP * GROUPS)
        count = gl.cdiv(high - low, KEYS)
        first += GROUP * group
        last = gl.minimum(first + GROUP, tokens) - 1
        edge_low = last - left
        edge_high = gl.minimum(first + right + 1, tokens)
        # Queries beyond the last token compute something from the last block, which is not stored.
        begin = gl.minimum((gl.maximum(first - left, 0) - low) // KEYS, count - 1)
        end = gl.maximum(gl.cdiv(gl.minimum(last + right + 1, tokens) - low, KEYS), begin + 1)

        row = first + gl.arange(0, GROUP, gl.SliceLayout(1, S))
        lowest = row - left  # first visible key of each query, perhaps negative
        span = (gl.minimum(row + right, tokens - 1) - lowest).to(gl.uint32)
        # Finite, so that a row without a visible key in its first block subtracts no infinities; below any score.
        top = gl.full([GROUP], -1e30, gl.float32, gl.SliceLayout(1, S))
        total = gl.full([GROUP, 4], 0.0, gl.float32, T)
        acc = gl.zeros([GROUP, MAIN], gl.float32, A)
        acc_rest = gl.zeros([GROUP, RC], gl.float32, R)

        slot, phase = _pass(0, begin, slot, phase, full, empty, STAGES)
        mbarrier.wait(q_full, turn)
        mbarrier.wait(full.index(slot), phase)
        issued = _issue_scores(q_s, q_r, k_s.index(slot), k_r.index(slot), zero, REST)
        if tile >= gl.num_programs(0):
            tma.store_wait(0)  # the last tile's output has left o_s
            if EPILOGUE != 0:
                mbarrier.arrive(o_empty)
        scores = warpgroup_mma_wait(0, deps=[issued])
        weights, top, shrink, total = _softmax(scores, top, total, low + begin * KEYS, lowest, span, edge_low,
                                               edge_high, scale, KEYS, S, T)  # fmt: skip
        weights = weights.to(q_s.dtype)
        after, after_phase = _next(slot, phase, STAGES)
        mbarrier.wait(full.index(after), after_phase, pred=begin + 1 < end)
        for i in range(begin + 1, end):
            before = slot
            slot = after
            phase = after_phase
            issued = _issue_scores(q_s, q_r, k_s.index(slot), k_r.index(slot), zero, REST)
            acc, acc_rest, left_operand = _issue_values(weights, v_s.index(before), v_r.index(before), acc, acc_rest,
                                                        A, R, REST)  # fmt: skip
            if BESIDE:
                scores = warpgroup_mma_wait(2 if REST > 0 else 1, deps=[issued])
            else:
                acc, acc_rest, left_operand = _settle(acc, acc_rest, left_operand, REST)
                scores = warpgroup_mma_wait(0, deps=[issued])
                mbarrier.arrive(empty.index(before))
            weights, top, shrink, total = _softmax(scores, top, total, low + i * KEYS, lowest, span, edge_low,
                                                   edge_high, scale, KEYS, S, T)  # fmt: skip
            weights = weights.to(q_s.dtype)
            # The assembler moves a wait for products up to the last branch. This wait is a branch, and the new
            # weights are needed at the next wait: so the softmax stays between the two, beside the products.
            after, after_phase = _next(slot, phase, STAGES)
            mbarrier.wait(full.index(after), after_phase, pred=i + 1 < end)
            if BESIDE:
                if REST > 0:
                    acc, acc_rest, left_operand, weights = warpgroup_mma_wait(
                        0, deps=[acc, acc_rest, left_operand, weights]
                    )
                else:
                    acc, left_operand, weights = warpgroup_mma_wait(0, deps=[acc, left_operand, weights])
                mbarrier.arrive(empty.index(before))
            acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, A)).expand_dims(1)
            if REST > 0:
                acc_rest = acc_rest * gl.convert_layout(shrink, gl.SliceLayout(1, R)).expand_dims(1)
        mbarrier.arrive(q_empty)
        acc, acc_rest, left_operand = _issue_values(weights, v_s.index(slot), v_r.index(slot), acc, acc_rest,
                                                    A, R, REST)  # fmt: skip
        share = gl.convert_layout(1.0 / gl.sum(total, 1), gl.SliceLayout(1, S), assert_trivial=True)
        if EPILOGUE != 0:
            mbarrier.wait(o_full, turn)
        acc, acc_rest, left_operand = _settle(acc, acc_rest, left_operand, REST)
        mbarrier.arrive(empty.index(slot))
        slot, phase = _next(slot, phase, STAGES)
        slot, phase = _pass(end, count, slot, phase, full, empty, STAGES)

        _epilogue(acc, share, o_s, A, EPILOGUE)
        if REST > 0:
            _epilogue(acc_rest, share, o_r, R, EPILOGUE)
        fence_async_shared()
        gl.thread_barrier()
        # The copy engine leaves out what lies outside the tensor.
        tma.async_copy_shared_to_global(out, [batch, head, first, 0], o_s)
        if REST > 0:
            tma.async_copy_shared_to_global(out_rest, [batch, head, first, MAIN], o_r)
        turn ^= 1
    tma.store_wait(0)
