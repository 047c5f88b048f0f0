"""`few_query_scores` in Triton: keys are cut into parts, each with a log-sum-exp of its own, put together afterwards.

The queries of all heads that share a key head are rows of one block, so a key is read once for all of them. Few rows
keep their logits, which are then smaller than the keys; with more rows it is cheaper to read the keys twice. A row's
normaliser is the log-sum-exp over its parts; one that was given is a row of one part. Heads and queries are added by
one program in one order: no atomics, and the same bits in every run. How keys are cut depends on their number alone,
so a picture's scores do not depend on its neighbours in the batch.
"""

# triton.jit makes a launcher of a function, which its annotations do not say
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton
import triton.language as tl

_MAX_PARTS = 32  # of a row of keys; every program that normalises a row reads them all
_SUM_ROWS, _SUM_KEYS = 16, 64


@triton.jit
def _load_lse(parts, row, end, n_parts, PARTS: tl.constexpr):
    """Log-sum-exp of rows over their parts; rows past the end are the last row."""
    part = tl.arange(0, PARTS)
    row = tl.minimum(row, end - 1).to(tl.int64)
    own = tl.load(parts + row[:, None] * n_parts + part[None, :], mask=(part < n_parts)[None, :], other=float("-inf"))
    top = tl.max(own, 1)
    return top + tl.log(tl.sum(tl.exp(own - top[:, None]), 1))


@triton.jit
def _row_lse(
    q, k, parts, logits, scale, q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, n_queries, n_rows, n_key_heads, n_keys, width,
    part_len, n_parts, first_wanted, n_wanted,
    ROWS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    pair, part = tl.program_id(0), tl.program_id(1)
    batch, key_head = (pair // n_key_heads).to(tl.int64), pair % n_key_heads
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)  # of those that share this key head
    lane, d = tl.arange(0, TILE), tl.arange(0, D)
    head = key_head * (n_rows // n_queries) + row // n_queries
    at_row = q + batch * q_b + head.to(tl.int64) * q_h + (row % n_queries).to(tl.int64) * q_m
    query = tl.load(at_row[:, None] + d[None, :] * q_d, mask=(row < n_rows)[:, None] & (d < width)[None, :], other=0.0)
    row_of_all = pair.to(tl.int64) * n_rows + row
    top = tl.zeros([ROWS], tl.float32) - float("inf")
    total = tl.zeros([ROWS], tl.float32)
    end = tl.minimum((part + 1) * part_len, n_keys)
    for key_first in range(part * part_len, end, TILE):
        col = key_first + lane
        at_col = k + batch * k_b + key_head.to(tl.int64) * k_h + col.to(tl.int64) * k_n
        key = tl.load(at_col[:, None] + d[None, :] * k_d, mask=(col < end)[:, None] & (d < width)[None, :], other=0.0)
        logit = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if logits is not None:
            place = col - first_wanted
            is_wanted = (col < end) & (place >= 0) & (place < n_wanted)
            at_logit = logits + row_of_all[:, None] * n_wanted + place[None, :]
            tl.store(at_logit, logit, mask=(row < n_rows)[:, None] & is_wanted[None, :])
        if parts is not None:
            logit = tl.where((col < end)[None, :], logit, float("-inf"))
            higher = tl.maximum(top, tl.max(logit, 1))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(logit - higher[:, None]), 1)
            top = higher
    if parts is not None:
        tl.store(parts + row_of_all * n_parts + part, top + tl.log(total), mask=row < n_rows)


@triton.jit
def _key_share(
    q, k, parts, share, scale, factor, q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, n_queries, n_heads, group, n_keys, width,
    n_parts, PARTS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0)
    batch, head = (pair // n_heads).to(tl.int64), pair % n_heads
    lane, d = tl.arange(0, TILE), tl.arange(0, D)
    col = tl.program_id(1) * TILE + lane
    at_col = k + batch * k_b + (head // group).to(tl.int64) * k_h + col.to(tl.int64) * k_n
    key = tl.load(at_col[:, None] + d[None, :] * k_d, mask=(col < n_keys)[:, None] & (d < width)[None, :], other=0.0)
    total = tl.zeros([TILE], tl.float32)
    for row_first in range(0, n_queries, ROWS):
        row = row_first + tl.arange(0, ROWS)
        is_row = row < n_queries
        at_row = q + batch * q_b + head.to(tl.int64) * q_h + row.to(tl.int64) * q_m
        query = tl.load(at_row[:, None] + d[None, :] * q_d, mask=is_row[:, None] & (d < width)[None, :], other=0.0)
        norm = _load_lse(parts + pair.to(tl.int64) * n_queries * n_parts, row, n_queries, n_parts, PARTS)
        logit = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        # rows past the end hold zeros, and exp(0) is no 0
        total += tl.sum(tl.where(is_row[:, None], tl.exp(logit - norm[:, None]), 0.0), 0)
    tl.store(share + pair.to(tl.int64) * n_keys + col, total * factor, mask=col < n_keys)


@triton.jit
def _sum_rows(
    rows, parts, scores, factor, n_keys, each, n_parts,
    PARTS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Add `each` rows to one: shares where `parts` is None, else logits that are normalised first."""
    group = tl.program_id(0).to(tl.int64)
    key = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros([ROWS, TILE], tl.float32)
    for row_first in range(0, each, ROWS):
        row = row_first + tl.arange(0, ROWS)
        at = rows + (group * each + row)[:, None] * n_keys + key[None, :]
        is_there = (row < each)[:, None] & (key < n_keys)[None, :]
        if parts is None:
            total += tl.load(at, mask=is_there, other=0.0)
        else:
            norm = _load_lse(parts + group * each * n_parts, row, each, n_parts, PARTS)
            total += tl.exp(tl.load(at, mask=is_there, other=float("-inf")) - norm[:, None])
    tl.store(scores + group * n_keys + key, tl.sum(total, 0) * factor, mask=key < n_keys)


def keeps_logits(q, k):
    """Whether the logits of all queries, written and read, are fewer bytes than the keys in half precision."""
    rows = q.shape[1] // k.shape[1] * q.shape[2]
    return 4 * rows <= q.shape[3]


def n_parts(k):
    """Into how many parts the keys are cut."""
    return triton.cdiv(k.shape[2], _part_len(k))


def row_lse(q, k, parts, logits, scale, first_wanted):
    """Launch: `parts` [B, Hq, M, parts] and `logits` [B, Hq, M, wanted] are written whole; one of them may be None."""
    batch, n_key_heads, n_keys, width = k.shape
    n_queries = q.shape[2]
    n_rows = q.shape[1] // n_key_heads * n_queries
    block = _block(n_rows, width, q.element_size())
    _row_lse[(batch * n_key_heads, n_parts(k), triton.cdiv(n_rows, block["ROWS"]))](
        q, k, parts, logits, scale, *q.stride(), *k.stride(), n_queries, n_rows, n_key_heads, n_keys, width,
        _part_len(k), n_parts(k), first_wanted, 0 if logits is None else logits.shape[3], **block,
    )  # fmt: skip


def key_share(q, k, parts, share, scale, factor):
    """Launch: `share` [B, Hq, N] is written whole."""
    batch, n_heads, n_queries, width = q.shape
    n_keys, count = k.shape[2], parts.shape[3]
    block = _block(n_queries, width, q.element_size())
    _key_share[(batch * n_heads, triton.cdiv(n_keys, block["TILE"]))](
        q, k, parts, share, scale, factor, *q.stride(), *k.stride(), n_queries, n_heads, n_heads // k.shape[1], n_keys,
        width, count, PARTS=triton.next_power_of_2(count), **block,
    )  # fmt: skip


def sum_rows(rows, parts, scores, factor, groups):
    """Launch: `scores` is written whole, with `groups` rows for each image of the batch."""
    n_groups, n_keys = rows.shape[0] * groups, rows.shape[-1]
    count = 1 if parts is None else parts.shape[3]
    _sum_rows[(n_groups, triton.cdiv(n_keys, _SUM_KEYS))](
        rows, parts, scores, factor, n_keys, rows.numel() // (n_groups * n_keys), count,
        PARTS=triton.next_power_of_2(count), ROWS=_SUM_ROWS, TILE=_SUM_KEYS, num_warps=4,
    )  # fmt: skip


def _tile(width, bytes_each):
    """Keys of a block, whose copies and the queries' lie in 99 KB."""
    return 32 if _wide(width) * bytes_each > 512 else 64


def _wide(width):
    return max(16, triton.next_power_of_2(width))


def _part_len(k):
    tile = _tile(k.shape[3], k.element_size())
    return triton.cdiv(triton.cdiv(k.shape[2], tile), _MAX_PARTS) * tile


def _block(n_rows, width, bytes_each):
    d, tile = _wide(width), _tile(width, bytes_each)
    rows = min(max(16, triton.next_power_of_2(n_rows)), tile)
    return {"ROWS": rows, "TILE": tile, "D": d, "num_warps": 4, "num_stages": 2 if d * bytes_each <= 256 else 1}
