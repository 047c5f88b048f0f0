"""`attn_colmean` in Triton: a program owns a block of keys of one head and walks over the queries.

Because a column has one owner, it is summed in one program in one order: no atomics, and the same bits in every run.
Heads have programs of their own, for there are often fewer blocks of keys than processors; their shares are added in a
second, small pass. Half-precision operands go to the tensor cores as they are (their products are exact in the float32
sum); float32 operands are multiplied as float32 and not as TF32.
"""

# triton.jit makes a launcher of a function, which its annotations do not say
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton
import triton.language as tl

from lightbox.kernels.segments.kernel import block_of, find_tile, n_tiles


@triton.jit
def _row_lse(
    q, k, cu, lse, scale, q_t, q_h, q_d, k_t, k_h, k_d, n_tokens, width, stride, n_segments,
    SEGMENTS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    _, first, end, tile = find_tile(cu, n_segments, n_tokens, tl.program_id(0), stride, TILE, SEGMENTS)
    head = tl.program_id(1)
    lane, d = tl.arange(0, TILE), tl.arange(0, D)
    row = first + (tile * TILE + lane) * stride
    at_q = q + row.to(tl.int64)[:, None] * q_t + head * q_h + d[None, :] * q_d
    query = tl.load(at_q, mask=(row < end)[:, None] & (d < width)[None, :], other=0.0)
    top = tl.zeros([TILE], tl.float32) - float("inf")
    total = tl.zeros([TILE], tl.float32)
    if first + tile * TILE * stride < end:
        for col_first in range(first, end, TILE):
            col = col_first + lane
            at_k = k + col.to(tl.int64)[:, None] * k_t + head * k_h + d[None, :] * k_d
            key = tl.load(at_k, mask=(col < end)[:, None] & (d < width)[None, :], other=0.0)
            logit = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            logit = tl.where((col < end)[None, :], logit, float("-inf"))
            higher = tl.maximum(top, tl.max(logit, 1))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(logit - higher[:, None]), 1)
            top = higher
        tl.store(lse + head.to(tl.int64) * n_tokens + row, top + tl.log(total), mask=row < end)


@triton.jit
def _column_share(
    q, k, cu, lse, share, scale, q_t, q_h, q_d, k_t, k_h, k_d, lse_h, lse_t, n_tokens, n_heads, width, stride,
    n_segments, SEGMENTS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    _, first, end, tile = find_tile(cu, n_segments, n_tokens, tl.program_id(0), 1, TILE, SEGMENTS)
    head = tl.program_id(1)
    lane, d = tl.arange(0, TILE), tl.arange(0, D)
    col = first + tile * TILE + lane
    at_k = k + col.to(tl.int64)[:, None] * k_t + head * k_h + d[None, :] * k_d
    key = tl.load(at_k, mask=(col < end)[:, None] & (d < width)[None, :], other=0.0)
    total = tl.zeros([TILE], tl.float32)
    if first + tile * TILE < end:
        for row_first in range(first, end, TILE * stride):
            row = row_first + lane * stride
            at_q = q + row.to(tl.int64)[:, None] * q_t + head * q_h + d[None, :] * q_d
            query = tl.load(at_q, mask=(row < end)[:, None] & (d < width)[None, :], other=0.0)
            norm = tl.load(lse + head * lse_h + row.to(tl.int64) * lse_t, mask=row < end, other=0.0)
            logit = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            # rows past the end hold zeros, and exp(0) is no 0
            total += tl.sum(tl.where((row < end)[:, None], tl.exp(logit - norm[:, None]), 0.0), 0)
        n_queries = (end - first + stride - 1) // stride
        mean = total / (n_queries * n_heads).to(tl.float32)
        tl.store(share + head.to(tl.int64) * n_tokens + col, mean, mask=col < end)


@triton.jit
def _sum_heads(share, mean, n_tokens, n_heads, TILE: tl.constexpr):
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for head in range(n_heads):
        total += tl.load(share + head * n_tokens + token, mask=token < n_tokens, other=0.0)
    tl.store(mean + token, total, mask=token < n_tokens)


def row_lse(q, k, cu, lse, scale, stride):
    """Launch: `lse` [H, T] is written at every `stride`-th row of each segment."""
    n_tokens, n_heads, width = q.shape
    n_segments = len(cu) - 1
    block = _block(width, q.element_size())
    _row_lse[(n_tiles(n_tokens, n_segments, block["TILE"]), n_heads)](
        q, k, cu, lse, scale, *q.stride(), *k.stride(), n_tokens, width, stride, n_segments,
        SEGMENTS=block_of(n_segments), **block,
    )  # fmt: skip


def column_mean(q, k, cu, lse, share, mean, scale, stride):
    """Launch: `share` [H, T] and `mean` [T] are written whole."""
    n_tokens, n_heads, width = q.shape
    n_segments = len(cu) - 1
    block = _block(width, q.element_size())
    _column_share[(n_tiles(n_tokens, n_segments, block["TILE"]), n_heads)](
        q, k, cu, lse, share, scale, *q.stride(), *k.stride(), *lse.stride(), n_tokens, n_heads, width, stride,
        n_segments, SEGMENTS=block_of(n_segments), **block,
    )  # fmt: skip
    _sum_heads[(triton.cdiv(n_tokens, 256),)](share, mean, n_tokens, n_heads, TILE=256, num_warps=4)


def _block(width, bytes_each):
    """Tile and head width of a program: two tiles of operands, and their copies in flight, within 99 KB."""
    d = max(16, triton.next_power_of_2(width))
    tile = 32 if d * bytes_each > 512 else 64
    return {"TILE": tile, "D": d, "num_warps": 4, "num_stages": 2 if d * bytes_each <= 256 else 1}
