"""`assign_merge` in Triton: tokens look for their kept token, then kept tokens collect their tokens.

The first kernel multiplies a block of tokens with blocks of kept rows and keeps a running best, so the matrix of
likeness is never stored. The second gives every kept token a program that looks through its segment's assignments: it
reads a list of N numbers instead of adding to shared memory, so there are no atomics and sums have one order.
"""

# triton.jit makes a launcher of a function, which its annotations do not say
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton
import triton.language as tl

from lightbox.kernels.segments.kernel import block_of, find_tile, load_span, n_tiles

_TILE, _D_TILE = 64, 32
_ROWS = 32


@triton.jit
def _assign(
    metric, idx, cu, cu_kept, assigned, stride_t, stride_d, n_tokens, n_kept, width, n_segments,
    SEGMENTS: tl.constexpr, TILE: tl.constexpr, D_TILE: tl.constexpr,
):  # fmt: skip
    segment, first, end, tile = find_tile(cu, n_segments, n_tokens, tl.program_id(0), 1, TILE, SEGMENTS)
    kept_first, kept_end = load_span(cu_kept, segment, n_segments, n_kept)
    lane = tl.arange(0, TILE)
    token = first + tile * TILE + lane
    best = tl.zeros([TILE], tl.float32) - float("inf")
    best_place = tl.zeros([TILE], tl.int32) - 1
    own_place = tl.zeros([TILE], tl.int32) - 1
    if first + tile * TILE < end:
        for place_first in range(kept_first, kept_end, TILE):
            place = place_first + lane
            kept = tl.load(idx + place, mask=place < kept_end, other=0)
            kept = tl.minimum(tl.maximum(kept, 0), n_tokens - 1)
            dot = tl.zeros([TILE, TILE], tl.float32)
            square = tl.zeros([TILE], tl.float32)
            for d_first in range(0, width, D_TILE):
                d = d_first + tl.arange(0, D_TILE)
                at_token = metric + token.to(tl.int64)[:, None] * stride_t + d[None, :] * stride_d
                at_kept = metric + kept[:, None] * stride_t + d[None, :] * stride_d
                one = tl.load(at_token, mask=(token < end)[:, None] & (d < width)[None, :], other=0.0).to(tl.float32)
                other = tl.load(at_kept, mask=(place < kept_end)[:, None] & (d < width)[None, :], other=0.0)
                other = other.to(tl.float32)
                dot += tl.dot(one, tl.trans(other), input_precision="ieee")
                square += tl.sum(other * other, 1)
            # a token's own norm scales all its cosines alike, so it is left out
            likeness = tl.div_rn(dot, tl.zeros_like(dot) + tl.maximum(tl.sqrt_rn(square), 1e-12)[None, :])
            likeness = tl.where((place < kept_end)[None, :] & (likeness == likeness), likeness, float("-inf"))
            top = tl.max(likeness, 1)
            top_place = tl.min(tl.where(likeness == top[:, None], place[None, :], 2147483647), 1)
            is_better = top > best  # strictly: among equals the first kept token wins
            best_place = tl.where(is_better, top_place, best_place)
            best = tl.where(is_better, top, best)
            is_own = (kept[None, :] == token[:, None]) & (place < kept_end)[None, :]
            own_place = tl.maximum(own_place, tl.max(tl.where(is_own, place[None, :], -1), 1))
        tl.store(assigned + token, tl.where(own_place >= 0, own_place, best_place), mask=token < end)


@triton.jit
def _merge(
    x, idx, cu, cu_kept, assigned, weight, y, whole, x_t, x_d, n_tokens, n_kept, width, n_segments,
    HAS_WEIGHT: tl.constexpr, IS_SUM: tl.constexpr, SEGMENTS: tl.constexpr, ROWS: tl.constexpr, D_TILE: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    s = tl.arange(0, SEGMENTS)
    _, kept_ends = load_span(cu_kept, s, n_segments, n_kept)
    segment = tl.sum(((s < n_segments) & (kept_ends <= place)).to(tl.int32), 0)
    first, end = load_span(cu, segment, n_segments, n_tokens)
    target = tl.minimum(tl.maximum(tl.load(idx + place), 0), n_tokens - 1)
    d = tl.program_id(1) * D_TILE + tl.arange(0, D_TILE)
    total = tl.zeros([D_TILE], tl.float32)
    divisor = tl.zeros([ROWS], tl.float32)
    for row_first in range(first, end, ROWS):
        token = row_first + tl.arange(0, ROWS)
        is_mine = tl.load(assigned + token, mask=token < end, other=-1) == place
        if IS_SUM:
            is_mine = is_mine & (token != target)
        if tl.sum(is_mine.to(tl.int32), 0) > 0:  # most stretches of tokens have none of ours
            share = is_mine.to(tl.float32)
            if HAS_WEIGHT:
                share = tl.load(weight + token, mask=is_mine, other=0.0).to(tl.float32)
            at = x + token.to(tl.int64)[:, None] * x_t + d[None, :] * x_d
            rows = tl.load(at, mask=is_mine[:, None] & (d < width)[None, :], other=0.0).to(tl.float32)
            total += tl.sum(share[:, None] * rows, 0)
            divisor += share
    sum_of_shares = tl.sum(divisor, 0)
    row = tl.load(x + target * x_t + d * x_d, mask=d < width, other=0.0).to(tl.float32)
    mean = total / tl.where(sum_of_shares > 0, sum_of_shares, 1.0)
    if IS_SUM:
        row = row + mean
    else:
        row = tl.where(sum_of_shares > 0, mean, row)
    tl.store(y + place.to(tl.int64) * width + d, row.to(y.dtype.element_ty), mask=d < width)
    if tl.program_id(1) == 0:
        tl.store(whole + place, sum_of_shares)


@triton.jit
def _merge_backward(
    grad, x, y, idx, assigned, whole, weight, x_grad, weight_grad, grad_t, grad_d, x_t, x_d, y_t, y_d, n_tokens, width,
    HAS_WEIGHT: tl.constexpr, IS_SUM: tl.constexpr, D_TILE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(assigned + token).to(tl.int64)
    is_taken = place >= 0
    divisor = tl.load(whole + place, mask=is_taken, other=0.0)
    target = tl.load(idx + place, mask=is_taken, other=-1)
    inverse = tl.where(divisor > 0, 1.0 / tl.where(divisor > 0, divisor, 1.0), 0.0)
    if IS_SUM:
        inverse = tl.where(target == token, 0.0, inverse)
        factor = tl.where(target == token, 1.0, inverse)
    else:  # where the weights of a group sum to 0, its kept token is passed on as it is
        factor = tl.where((target == token) & (divisor == 0), 1.0, inverse)
    if HAS_WEIGHT:
        own = tl.load(weight + token).to(tl.float32)
        factor = tl.where(inverse > 0, inverse * own, factor)
    dot = tl.zeros([D_TILE], tl.float32)
    for d_first in range(0, width, D_TILE):
        d = d_first + tl.arange(0, D_TILE)
        upper = tl.load(grad + place * grad_t + d * grad_d, mask=(d < width) & (place >= 0), other=0.0).to(tl.float32)
        row = tl.load(x + token * x_t + d * x_d, mask=d < width, other=0.0).to(tl.float32)
        mean = tl.load(y + place * y_t + d * y_d, mask=(d < width) & (place >= 0), other=0.0).to(tl.float32)
        if IS_SUM:
            mean -= tl.load(x + target * x_t + d * x_d, mask=(d < width) & (place >= 0), other=0.0).to(tl.float32)
        tl.store(x_grad + token * width + d, (factor * upper).to(x_grad.dtype.element_ty), mask=d < width)
        dot += upper * (row - mean)
    tl.store(weight_grad + token, inverse * tl.sum(dot, 0))


def assign(metric, idx, cu, cu_kept, assigned):
    """Launch: `assigned` [T] is written whole."""
    n_segments = len(cu) - 1
    _assign[(n_tiles(len(metric), n_segments, _TILE),)](
        metric, idx, cu, cu_kept, assigned, *metric.stride(), len(metric), len(idx), metric.shape[1], n_segments,
        SEGMENTS=block_of(n_segments), TILE=_TILE, D_TILE=_D_TILE, num_warps=4,
    )  # fmt: skip


def merge(x, idx, cu, cu_kept, assigned, weight, y, whole, *, is_sum):
    """Launch: `y` [K, D] and `whole` [K] are written whole."""
    n_segments, d_tile = len(cu) - 1, _d_tile(x.shape[1], 128)
    _merge[(len(idx), triton.cdiv(x.shape[1], d_tile))](
        x, idx, cu, cu_kept, assigned, weight, y, whole, *x.stride(), len(x), len(idx), x.shape[1], n_segments,
        HAS_WEIGHT=weight is not None, IS_SUM=is_sum, SEGMENTS=block_of(n_segments), ROWS=_ROWS, D_TILE=d_tile,
        num_warps=4,
    )  # fmt: skip


def merge_backward(grad, x, y, idx, assigned, whole, weight, x_grad, weight_grad, *, is_sum):
    """Launch: `x_grad` [T, D] and `weight_grad` [T] are written whole."""
    _merge_backward[(len(x),)](
        grad, x, y, idx, assigned, whole, weight, x_grad, weight_grad, *grad.stride(), *x.stride(), *y.stride(),
        len(x), x.shape[1], HAS_WEIGHT=weight is not None, IS_SUM=is_sum, D_TILE=_d_tile(x.shape[1], 1024), num_warps=4,
    )  # fmt: skip


def _d_tile(width, most):
    return min(most, triton.next_power_of_2(max(1, width)))
