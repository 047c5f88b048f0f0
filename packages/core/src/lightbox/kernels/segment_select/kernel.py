"""`segment_select` in Triton: one program per segment finds its k-th highest score bit by bit.

Scores become 32-bit integers of the same order. The k-th highest is built from the top bit down: a bit stays where at
least k keys reach what it gives. 32 counts, no sort, and the same result in whatever order threads run.
"""

# triton.jit makes a launcher of a function, which its annotations do not say
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton
import triton.language as tl

from lightbox.kernels.segments.kernel import block_of, load_counts, load_span

_MAX_TILE = 4096


@triton.jit
def _load_keys(scores, place, stop):
    """Scores as integers from 0 to 2^32 - 1 of the same order, NaN as 0; -1, under every cut, past the segment."""
    score = tl.load(scores + place, mask=place < stop, other=0.0).to(tl.float32)
    score = tl.where(score == 0.0, 0.0, score)  # -0.0 ties with 0.0
    bits = score.to(tl.int32, bitcast=True)
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats fall as integers
    key = rising.to(tl.int64) + 0x80000000
    key = tl.where(score != score, 0, key)
    return tl.where(place < stop, key, -1)


@triton.jit
def _select(scores, cu, k, idx, cu_kept, n_tokens, n_kept, n_segments, SEGMENTS: tl.constexpr, TILE: tl.constexpr):
    segment = tl.program_id(0)
    base, count = load_counts(k, segment, n_segments, SEGMENTS)
    start, stop = load_span(cu, segment, n_segments, n_tokens)
    tl.store(cu_kept + segment + 1, base + count)
    if segment == 0:
        tl.store(cu_kept, 0)
    count = tl.minimum(count, stop - start)
    lane = tl.arange(0, TILE)
    head = _load_keys(scores, start + lane, stop)  # usually the whole segment: it stays in registers
    cut = tl.full([], 0, tl.int64)
    bit = tl.full([], 0x80000000, tl.int64)
    for _ in range(32):
        reached = tl.sum((head >= cut + bit).to(tl.int32), 0)
        for first in range(start + TILE, stop, TILE):
            reached += tl.sum((_load_keys(scores, first + lane, stop) >= cut + bit).to(tl.int32), 0)
        cut = tl.where(reached >= count, cut + bit, cut)
        bit = bit // 2
    above = tl.sum((head > cut).to(tl.int32), 0)
    for first in range(start + TILE, stop, TILE):
        above += tl.sum((_load_keys(scores, first + lane, stop) > cut).to(tl.int32), 0)
    n_ties = count - above  # of those at the cut, the first ones
    ties_before = tl.full([], 0, tl.int32)
    written = tl.full([], 0, tl.int32)
    for first in range(start, stop, TILE):
        key = _load_keys(scores, first + lane, stop)
        is_tie = (key == cut).to(tl.int32)
        tie_rank = ties_before + tl.cumsum(is_tie, 0) - is_tie
        keep = ((key > cut) | ((is_tie == 1) & (tie_rank < n_ties))).to(tl.int32)
        place = base + written + tl.cumsum(keep, 0) - keep
        tl.store(idx + place, (first + lane).to(tl.int64), mask=(keep == 1) & (place < n_kept))
        ties_before += tl.sum(is_tie, 0)
        written += tl.sum(keep, 0)


def select(scores, cu, k, idx, cu_kept):
    """Launch on contiguous tensors; `idx` [K] and `cu_kept` [S+1] are written whole."""
    n_segments = len(cu) - 1
    # the length of a segment is the device's to know; equal segments fit into a tile of the mean length
    mean_len = triton.cdiv(len(scores), n_segments)
    tile = min(max(triton.next_power_of_2(max(1, mean_len)), 64), _MAX_TILE)
    _select[(n_segments,)](
        scores, cu, k, idx, cu_kept, len(scores), len(idx), n_segments,
        SEGMENTS=block_of(n_segments), TILE=tile, num_warps=4 if tile <= 1024 else 8,
    )  # fmt: skip
