"""`ragged_splice` in Triton: a program writes one row of the sequence, its positions and its label.

Where the row comes from is read from the layout; loads from the other sources are masked off and read nothing. The
backward pass is the same walk the other way: a kept row appears once, so its gradient is stored, and nothing is added
up by several programs.
"""

# triton.jit makes a launcher of a function, which its annotations do not say
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton
import triton.language as tl

_IGNORED = tl.constexpr(-100)


@triton.jit
def _splice(
    vis, table, pos, text_pos, idx, text_ids, layout, labels, newline, gate, emb, places, targets,
    vis_t, vis_d, table_v, table_d, pos_a, pos_t, text_a, text_t, n_vis, n_kept, n_text, n_words, n_rows, width, n_axes,
    HAS_LABELS: tl.constexpr, HAS_NEWLINE: tl.constexpr, HAS_GATE: tl.constexpr, AXES: tl.constexpr,
    D_TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    code = tl.load(layout + row).to(tl.int64)
    # clamped, so that a wrong layout or index gives a wrong row and no fault
    is_text, is_vis = (code >= 0) & (n_text > 0), (code < 0) & (n_kept > 0)
    text = tl.minimum(code, n_text - 1)
    kept = tl.minimum(-code - 1, n_kept - 1)
    token = tl.load(idx + kept, mask=is_vis, other=0)
    token = tl.minimum(tl.maximum(token, 0), n_vis - 1)
    word = tl.minimum(tl.load(text_ids + text, mask=is_text, other=0), n_words - 1)
    is_newline = is_text & (word < 0)
    is_word = is_text & (word >= 0)
    factor = 1.0
    if HAS_GATE:
        factor = tl.load(gate + kept, mask=is_vis, other=0.0).to(tl.float32)
    for d_first in range(0, width, D_TILE):
        d = d_first + tl.arange(0, D_TILE)
        is_wide = d < width
        value = tl.load(vis + token * vis_t + d * vis_d, mask=tl.where(is_vis, is_wide, False), other=0.0)
        if HAS_GATE:
            value = (value.to(tl.float32) * factor).to(emb.dtype.element_ty)
        other = tl.load(table + word * table_v + d * table_d, mask=tl.where(is_word, is_wide, False), other=0.0)
        value = tl.where(is_word, other, value)
        if HAS_NEWLINE:
            value = tl.where(is_newline, tl.load(newline + d, mask=is_wide, other=0.0), value)
        tl.store(emb + row * width + d, value, mask=is_wide)
    axis = tl.arange(0, AXES)
    is_axis = axis < n_axes
    of_vis = tl.load(pos + axis * pos_a + token * pos_t, mask=tl.where(is_vis, is_axis, False), other=0)
    of_text = tl.load(text_pos + axis * text_a + text * text_t, mask=tl.where(is_text, is_axis, False), other=0)
    tl.store(places + axis * n_rows + row, tl.where(is_text, of_text, of_vis), mask=is_axis)
    label = tl.full([], _IGNORED, tl.int64)
    if HAS_LABELS:
        label = tl.load(labels + text, mask=is_text, other=_IGNORED)
    tl.store(targets + row, label)


@triton.jit
def _splice_backward(
    grad, vis, idx, layout, gate, vis_grad, gate_grad, grad_t, grad_d, vis_t, vis_d, n_vis, n_kept, width,
    HAS_GATE: tl.constexpr, D_TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    code = tl.load(layout + row).to(tl.int64)
    if (code < 0) & (n_kept > 0):
        kept = tl.minimum(-code - 1, n_kept - 1)
        token = tl.minimum(tl.maximum(tl.load(idx + kept), 0), n_vis - 1)
        factor = 1.0
        if HAS_GATE:
            factor = tl.load(gate + kept).to(tl.float32)
        dot = tl.zeros([D_TILE], tl.float32)
        for d_first in range(0, width, D_TILE):
            d = d_first + tl.arange(0, D_TILE)
            upper = tl.load(grad + row * grad_t + d * grad_d, mask=d < width, other=0.0).to(tl.float32)
            tl.store(vis_grad + token * width + d, (upper * factor).to(vis_grad.dtype.element_ty), mask=d < width)
            if HAS_GATE:
                dot += upper * tl.load(vis + token * vis_t + d * vis_d, mask=d < width, other=0.0).to(tl.float32)
        if HAS_GATE:
            tl.store(gate_grad + kept, tl.sum(dot, 0))


def splice(vis, table, pos, text_pos, idx, text_ids, layout, labels, newline, gate, emb, places, targets):
    """Launch: `emb` [Ltot, D], `places` [P, Ltot] and `targets` [Ltot] are written whole."""
    _splice[(len(layout),)](
        vis, table, pos, text_pos, idx, text_ids, layout, labels, newline, gate, emb, places, targets,
        *vis.stride(), *table.stride(), *pos.stride(), *text_pos.stride(),
        len(vis), len(idx), len(text_ids), len(table), len(layout), vis.shape[1], len(pos),
        HAS_LABELS=labels is not None, HAS_NEWLINE=newline is not None, HAS_GATE=gate is not None,
        AXES=triton.next_power_of_2(max(1, len(pos))), D_TILE=_d_tile(vis.shape[1]), num_warps=4,
    )  # fmt: skip


def splice_backward(grad, vis, idx, layout, gate, vis_grad, gate_grad):
    """Launch: rows of `vis_grad` [T, D] and `gate_grad` [K] that the layout names are written."""
    _splice_backward[(len(layout),)](
        grad, vis, idx, layout, gate, vis_grad, gate_grad, *grad.stride(), *vis.stride(),
        len(vis), len(idx), vis.shape[1], HAS_GATE=gate is not None, D_TILE=_d_tile(vis.shape[1]), num_warps=4,
    )  # fmt: skip


def _d_tile(width):
    return min(1024, triton.next_power_of_2(max(1, width)))
