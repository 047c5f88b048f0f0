"""`greedy_select` in Triton: the cosines of each segment by all processors, then one program per segment picks.

A pick needs one row of cosines and the running state of the segment, which stays in registers. Max-min keeps the
cosine of each token to its nearest pick; that it needs no look back is why a pick costs N and not N times picks. The
DPP keeps the gain of each token and the rows of its Cholesky factor, which lie in global memory: between a row's store
and its use by other threads stands a barrier.
"""

# triton.jit makes a launcher of a function, which its annotations do not say
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton
import triton.language as tl

from lightbox.kernels.segments.kernel import block_of, find_tile, load_counts, load_span, n_tiles

_TILE, _D_TILE = 64, 32
_MAX_PAST = 16384  # numbers of the Cholesky factor that a program holds at once


@triton.jit
def _cosines(
    feat, cu, cosine, stride_t, stride_d, n_tokens, width, wide, n_segments,
    SEGMENTS: tl.constexpr, TILE: tl.constexpr, D_TILE: tl.constexpr,
):  # fmt: skip
    _, first, end, tile = find_tile(cu, n_segments, n_tokens, tl.program_id(0), 1, TILE, SEGMENTS)
    lane = tl.arange(0, TILE)
    row = first + tile * TILE + lane
    col = first + tl.program_id(1) * TILE + lane
    if (first + tile * TILE < end) & (first + tl.program_id(1) * TILE < end):
        dot = tl.zeros([TILE, TILE], tl.float32)
        row_square = tl.zeros([TILE], tl.float32)
        col_square = tl.zeros([TILE], tl.float32)
        for d_first in range(0, width, D_TILE):
            d = d_first + tl.arange(0, D_TILE)
            at_row = feat + row.to(tl.int64)[:, None] * stride_t + d[None, :] * stride_d
            at_col = feat + col.to(tl.int64)[:, None] * stride_t + d[None, :] * stride_d
            one = tl.load(at_row, mask=(row < end)[:, None] & (d < width)[None, :], other=0.0).to(tl.float32)
            other = tl.load(at_col, mask=(col < end)[:, None] & (d < width)[None, :], other=0.0).to(tl.float32)
            dot += tl.dot(one, tl.trans(other), input_precision="ieee")
            row_square += tl.sum(one * one, 1)
            col_square += tl.sum(other * other, 1)
        # rounded as IEEE says, or tokens that are equally far would differ by how they were divided
        row_norm = tl.maximum(tl.sqrt_rn(row_square), 1e-12)
        col_norm = tl.maximum(tl.sqrt_rn(col_square), 1e-12)
        likeness = tl.div_rn(dot, row_norm[:, None] * col_norm[None, :])
        itself = tl.where(row_square > 0, 1.0, 0.0)  # and not 1 +- 1e-7, which would decide the DPP's ties
        likeness = tl.where(row[:, None] == col[None, :], itself[:, None], likeness)
        likeness = tl.where(likeness != likeness, 2.0, likeness)  # a token with NaN is the least wanted
        at = cosine + row.to(tl.int64)[:, None] * wide + (col - first)[None, :]
        tl.store(at, likeness, mask=(row < end)[:, None] & (col < end)[None, :] & ((col - first) < wide)[None, :])


@triton.jit
def _nearest(cosine, cu, nearest, n_tokens, wide, n_segments, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    s = tl.arange(0, SEGMENTS)
    _, stops = load_span(cu, s, n_segments, n_tokens)
    segment = tl.sum(((s < n_segments) & (stops <= token)).to(tl.int32), 0)
    start, stop = load_span(cu, segment, n_segments, n_tokens)
    place = tl.arange(0, BLOCK)
    is_other = (place < tl.minimum(stop - start, wide)) & (start + place != token)
    row = tl.load(cosine + token.to(tl.int64) * wide + place, mask=is_other, other=-2.0)
    tl.store(nearest + token, tl.max(row, 0))


@triton.jit
def _write_picked(idx, is_picked, place, start, base, n_kept):
    order = base + tl.cumsum(is_picked, 0) - is_picked
    tl.store(idx + order, (start + place).to(tl.int64), mask=(is_picked == 1) & (order < n_kept))


@triton.jit
def _pick_far(
    cosine, nearest, cu, k, idx, n_tokens, n_kept, wide, n_segments, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr
):
    segment = tl.program_id(0)
    base, count = load_counts(k, segment, n_segments, SEGMENTS)
    start, stop = load_span(cu, segment, n_segments, n_tokens)
    n = tl.minimum(stop - start, wide)
    count = tl.minimum(count, n)
    place = tl.arange(0, BLOCK)
    near = tl.load(nearest + start + place, mask=place < n, other=0.0)
    is_picked = tl.zeros([BLOCK], tl.int32)
    for step in range(count):
        left = tl.where((place < n) & (is_picked == 0), near, float("inf"))
        pick = tl.min(tl.where(left == tl.min(left, 0), place, BLOCK), 0)  # the first of the farthest
        is_picked = tl.where(place == pick, 1, is_picked)
        row = tl.load(cosine + (start + pick).to(tl.int64) * wide + place, mask=place < n, other=0.0)
        # the first pick went by the nearest neighbour, all others go by the nearest pick
        near = tl.where(step == 0, row, tl.maximum(near, row))
    _write_picked(idx, is_picked, place, start, base, n_kept)


@triton.jit
def _pick_dpp(
    cosine, relevance, factor, cu, k, idx, eps, n_tokens, n_kept, wide, n_segments,
    HAS_RELEVANCE: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr, PAST: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0)
    base, count = load_counts(k, segment, n_segments, SEGMENTS)
    start, stop = load_span(cu, segment, n_segments, n_tokens)
    n = tl.minimum(stop - start, wide)
    count = tl.minimum(count, tl.minimum(n, n_kept - base))
    place = tl.arange(0, BLOCK)
    is_token = place < n
    weight = tl.zeros([BLOCK], tl.float32) + 1.0
    if HAS_RELEVANCE:
        weight = tl.load(relevance + start + place, mask=is_token, other=0.0).to(tl.float32)
        weight = tl.where(weight != weight, 0.0, weight)
    gain = tl.load(cosine + (start + place).to(tl.int64) * wide + place, mask=is_token, other=0.0) * weight * weight
    is_picked = tl.zeros([BLOCK], tl.int32)
    for step in range(count):
        is_left = is_token & (is_picked == 0)
        score = tl.where(is_left, tl.maximum(gain, -3e38), float("-inf"))
        best = tl.max(score, 0)
        has_rank = best > eps
        score = tl.where(has_rank, score, tl.where(is_left, tl.maximum(weight, -3e38), float("-inf")))
        pick = tl.min(tl.where(score == tl.max(score, 0), place, BLOCK), 0)
        is_picked = tl.where(place == pick, 1, is_picked)
        own_weight = tl.sum(tl.where(place == pick, weight, 0.0), 0)
        row = tl.load(cosine + (start + pick).to(tl.int64) * wide + place, mask=is_token, other=0.0)
        seen = tl.zeros([BLOCK], tl.float32)
        for t_first in range(0, step, PAST):
            t = t_first + tl.arange(0, PAST)
            at = factor + (base + t).to(tl.int64) * wide
            own = tl.load(at + pick, mask=t < step, other=0.0)
            past = tl.load(at[:, None] + place[None, :], mask=(t < step)[:, None] & is_token[None, :], other=0.0)
            seen += tl.sum(own[:, None] * past, 0)
        new = (own_weight * row * weight - seen) / tl.sqrt_rn(tl.maximum(best, eps))
        new = tl.where(is_token, tl.where(has_rank, new, 0.0), 0.0)
        tl.store(factor + (base + step).to(tl.int64) * wide + place, new, mask=is_token)
        tl.debug_barrier()  # the row is read in the next step by threads that did not write it
        gain = gain - new * new
        gain = tl.where(gain != gain, -1.0, gain)
    _write_picked(idx, is_picked, place, start, base, n_kept)


def cosines(feat, cu, cosine, nearest):
    """Launch: `cosine` [T, wide] is written where there are pairs of a segment, `nearest` [T] whole."""
    n_segments, wide = len(cu) - 1, cosine.shape[1]
    grid = (n_tiles(len(feat), n_segments, _TILE), triton.cdiv(wide, _TILE))
    _cosines[grid](
        feat, cu, cosine, feat.stride(0), feat.stride(1), len(feat), feat.shape[1], wide, n_segments,
        SEGMENTS=block_of(n_segments), TILE=_TILE, D_TILE=_D_TILE, num_warps=4,
    )  # fmt: skip
    if nearest is not None:
        _nearest[(len(feat),)](
            cosine, cu, nearest, len(feat), wide, n_segments,
            SEGMENTS=block_of(n_segments), BLOCK=triton.next_power_of_2(wide), num_warps=4,
        )  # fmt: skip


def pick_far(cosine, nearest, cu, k, idx):
    """Launch: `idx` [K] is written whole."""
    n_segments, block = len(cu) - 1, triton.next_power_of_2(cosine.shape[1])
    _pick_far[(n_segments,)](
        cosine, nearest, cu, k, idx, len(cosine), len(idx), cosine.shape[1], n_segments,
        SEGMENTS=block_of(n_segments), BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


def pick_dpp(cosine, relevance, factor, cu, k, idx, eps):
    """Launch: `factor` [K, wide] and `idx` [K] are written."""
    n_segments, block = len(cu) - 1, triton.next_power_of_2(cosine.shape[1])
    _pick_dpp[(n_segments,)](
        cosine, relevance, factor, cu, k, idx, eps, len(cosine), len(idx), cosine.shape[1], n_segments,
        HAS_RELEVANCE=relevance is not None, SEGMENTS=block_of(n_segments), BLOCK=block,
        PAST=max(1, min(16, _MAX_PAST // block)), num_warps=_warps(block),
    )  # fmt: skip


def _warps(block):
    """Warps of a program that holds a segment in registers: 8 to 32 numbers of a kind for each thread."""
    return 4 if block <= 1024 else 8 if block <= 4096 else 16
