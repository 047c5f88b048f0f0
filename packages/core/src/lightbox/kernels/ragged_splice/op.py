"""Kept visual rows, text rows and newline rows in one packed sequence, with their positions and labels.

Every visual row keeps the position that it had before pruning: renumbered positions are what makes grounding collapse
(GAP, arXiv 2506.21873: RefCOCO 56.1 to 15.3, and 51.4 where positions are kept).
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.kernels import backend, checks

NAME = "ragged_splice"
IGNORED = -100
"""Label of a row that no loss is taken over; torch's cross-entropy passes over it."""
NEWLINE = -1
"""What `text_ids` says where the row is the newline vector and no word."""


def ragged_splice(
    vis: Float[Tensor, "p d"],
    idx: Int64[Tensor, " n"],
    text_ids: Int64[Tensor, " t"],
    table: Float[Tensor, "v d"],
    layout: Int32[Tensor, " r"],
    pos: Int[Tensor, "a p"],
    text_pos: Int[Tensor, "a t"],
    labels: Int64[Tensor, " t"] | None = None,
    newline: Float[Tensor, " d"] | None = None,
    gate: Float[Tensor, " n"] | None = None,
    *,
    lengths: Int32[Tensor, " b"] | None = None,
) -> tuple[Float[Tensor, "r d"], Int[Tensor, "a r"], Int64[Tensor, " r"], Int32[Tensor, " b1"]]:
    """Write the packed sequence that `layout` describes; without a gate, rows are copied bit by bit.

    Args:
        vis: [T, D] visual rows before pruning.
        idx: [K] kept ones, rising.
        text_ids: [L] words of all sequences, one after another; `NEWLINE` stands for the newline row.
        table: [V, D] embedding table, of the dtype of `vis`.
        layout: [Ltot] where each row of the result comes from: v >= 0 is text row v, v < 0 is kept row -v - 1. A kept
            row is named at most once.
        pos: [P, T] positions of the visual rows; P is 1, or 3 for multimodal rotary embeddings.
        text_pos: [P, L] positions of the text rows, newlines included.
        labels: [L] targets of the text rows; None is `IGNORED` everywhere, which visual rows always are.
        newline: [D] the row that stands between rows of an image; needed where `text_ids` has `NEWLINE`.
        gate: [K] factors of the kept rows, for selection that is learned; the product is taken in float32.
        lengths: [B] rows of each sequence in `layout`; None is one sequence.

    Returns:
        emb: [Ltot, D]; gradients flow to `vis` (kept rows), `table`, `newline` and `gate`, first derivatives only.
        pos: [P, Ltot].
        labels: [Ltot].
        cu: [B+1] offsets of the sequences, as attention over packed sequences takes them.

    Raises:
        RequestError: wrong shapes, dtypes, devices; on the CPU also indices, words or layout out of range, a kept row
            named twice, a newline that was not given, lengths that do not sum to Ltot.

    Example:
        >>> vis, table = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0], [20.0]])
        >>> idx, words, layout = torch.tensor([2]), torch.tensor([1, 0]), torch.tensor([0, -1, 1], dtype=torch.int32)
        >>> places, word_places = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 4]])
        >>> emb, pos, _, _ = ragged_splice(vis, idx, words, table, layout, places, word_places)
        >>> emb.tolist(), pos.tolist()
        ([[20.0], [3.0], [10.0]], [[0, 3, 4]])
    """
    emb, places, targets = _ragged_splice(vis, idx, text_ids, table, layout, pos, text_pos, labels, newline, gate)
    if lengths is None:
        lengths = layout.new_full((1,), len(layout))
    else:
        _check_lengths(lengths, layout)
    return emb, places, targets, torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)])


def eager(
    vis: Tensor,
    idx: Tensor,
    text_ids: Tensor,
    table: Tensor,
    layout: Tensor,
    pos: Tensor,
    text_pos: Tensor,
    labels: Tensor | None,
    newline: Tensor | None,
    gate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator in PyTorch. Reads `layout`."""
    of_text, of_vis = (layout >= 0).nonzero()[:, 0], (layout < 0).nonzero()[:, 0]
    text_row, kept = layout[of_text].long(), ~layout[of_vis].long()
    token, word = idx[kept], text_ids[text_row]
    rows = vis[token]
    if gate is not None:
        wide = torch.promote_types(vis.dtype, torch.float32)
        rows = (rows.to(wide) * gate[kept, None].to(wide)).to(vis.dtype)
    words = table[word.clamp(min=0)]
    if newline is not None:
        words[word == NEWLINE] = newline
    emb = vis.new_empty(len(layout), vis.shape[1])
    emb[of_vis], emb[of_text] = rows, words
    places = pos.new_empty(len(pos), len(layout))
    places[:, of_vis], places[:, of_text] = pos[:, token], text_pos[:, text_row]
    targets = text_ids.new_full((len(layout),), IGNORED)
    if labels is not None:
        targets[of_text] = labels[text_row]
    return emb, places, targets


def eager_backward(
    grad: Tensor, vis: Tensor, idx: Tensor, layout: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the visual rows [T, D] and of the gate [K], float32 or wider, in PyTorch.

    A kept row appears once, so its gradient is stored and nothing is summed.
    """
    wide = torch.promote_types(vis.dtype, torch.float32)
    of_vis = (layout < 0).nonzero()[:, 0]
    kept = ~layout[of_vis].long()
    rows = grad[of_vis].to(wide)
    gate_grad = torch.zeros(len(idx), dtype=wide, device=vis.device)
    if gate is not None:
        gate_grad[kept] = (rows * vis[idx[kept]]).sum(dim=1)
        rows = rows * gate[kept, None]
    vis_grad = torch.zeros_like(vis, memory_format=torch.contiguous_format)
    vis_grad[idx[kept]] = rows.to(vis.dtype)
    return vis_grad, gate_grad


def launch(
    vis: Tensor,
    idx: Tensor,
    text_ids: Tensor,
    table: Tensor,
    layout: Tensor,
    pos: Tensor,
    text_pos: Tensor,
    labels: Tensor | None = None,
    newline: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The bare Triton launch: checks devices only. Arguments as of `ragged_splice`.

    Raises:
        RequestError: no Triton, or tensors that it cannot take.
    """
    kernel = backend.load_kernels(__package__)
    rows = (idx, text_ids, layout, labels, newline, gate)
    whole = [None if row is None else row.contiguous() for row in rows]
    with backend.on_device(NAME, vis, table, pos, text_pos, *whole):
        emb = torch.empty(len(layout), vis.shape[1], dtype=vis.dtype, device=vis.device)
        places = torch.empty(len(pos), len(layout), dtype=pos.dtype, device=vis.device)
        targets = torch.empty(len(layout), dtype=text_ids.dtype, device=vis.device)
        kernel.splice(vis, table, pos, text_pos, *whole, emb, places, targets)
    return emb, places, targets


def launch_backward(
    grad: Tensor, vis: Tensor, idx: Tensor, layout: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The bare Triton launch of `eager_backward`.

    Raises:
        RequestError: no Triton, or tensors that it cannot take.
    """
    kernel = backend.load_kernels(__package__)
    with backend.on_device(NAME, grad, vis, idx, layout, gate):
        # zeros: rows that were dropped, or kept and not used, are visited by no program
        vis_grad = torch.zeros(vis.shape, dtype=vis.dtype, device=vis.device)
        gate_grad = torch.zeros(len(idx), dtype=torch.float32, device=vis.device)
        gate = None if gate is None else gate.contiguous()
        kernel.splice_backward(grad, vis, idx.contiguous(), layout.contiguous(), gate, vis_grad, gate_grad)
    return vis_grad, gate_grad


@torch.library.custom_op(f"lightbox::{NAME}", mutates_args=(), device_types="cpu")
def _ragged_splice(
    vis: Tensor,
    idx: Tensor,
    text_ids: Tensor,
    table: Tensor,
    layout: Tensor,
    pos: Tensor,
    text_pos: Tensor,
    labels: Tensor | None,
    newline: Tensor | None,
    gate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(vis, idx, text_ids, table, layout, pos, text_pos, labels, newline, gate)
    return eager(vis, idx, text_ids, table, layout, pos, text_pos, labels, newline, gate)


@_ragged_splice.register_kernel("cuda")
def _on_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check(*arguments)
    return launch(*arguments)


@_ragged_splice.register_fake
def _shapes(
    vis: Tensor,
    idx: Tensor,
    text_ids: Tensor,
    table: Tensor,
    layout: Tensor,
    pos: Tensor,
    text_pos: Tensor,
    labels: Tensor | None,
    newline: Tensor | None,
    gate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        vis.new_empty(len(layout), vis.shape[1]),
        pos.new_empty(len(pos), len(layout)),
        text_ids.new_empty(len(layout)),
    )


@torch.library.custom_op(f"lightbox::{NAME}_backward", mutates_args=(), device_types="cpu")
def _backward(grad: Tensor, vis: Tensor, idx: Tensor, layout: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    return eager_backward(grad, vis, idx, layout, gate)


_backward.register_kernel("cuda")(launch_backward)


@_backward.register_fake
def _backward_shapes(
    grad: Tensor, vis: Tensor, idx: Tensor, layout: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(vis.dtype, torch.float32)
    return vis.new_empty(vis.shape), vis.new_empty(len(idx), dtype=wide)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    vis, idx, text_ids, table, layout, _, _, _, _, gate = inputs
    ctx.n_words = len(table)
    ctx.save_for_backward(vis, idx, text_ids, layout, gate)


def _gradients(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    vis, idx, text_ids, layout, gate = ctx.saved_tensors
    needs = ctx.needs_input_grad
    vis_grad = table_grad = newline_grad = gate_grad = None
    if needs[0] or needs[9]:
        vis_grad, gate_grad = _backward(grad, vis, idx, layout, gate)
    # a word for every row; what is no word of the table goes to one more, which is passed over
    ids = torch.cat([text_ids, text_ids.new_full((1,), ctx.n_words)])
    word = ids[torch.where(layout >= 0, layout, len(text_ids)).long()]
    if needs[3]:
        # the backward pass of an embedding: sums the rows of a word in a fixed order on CUDA too, without atomics
        named = torch.where(word == NEWLINE, ctx.n_words, word)
        table_grad = torch.ops.aten.embedding_dense_backward(grad, named, ctx.n_words + 1, ctx.n_words, False)
        table_grad = table_grad[: ctx.n_words]
    if needs[8]:
        newline_grad = (word == NEWLINE).to(grad.dtype) @ grad
    gate_grad = gate_grad.to(gate.dtype) if needs[9] and gate_grad is not None else None
    return vis_grad if needs[0] else None, None, None, table_grad, None, None, None, None, newline_grad, gate_grad


_ragged_splice.register_autograd(_gradients, setup_context=_keep_for_backward)


def _check(
    vis: Tensor,
    idx: Tensor,
    text_ids: Tensor,
    table: Tensor,
    layout: Tensor,
    pos: Tensor,
    text_pos: Tensor,
    labels: Tensor | None,
    newline: Tensor | None,
    gate: Tensor | None,
) -> None:
    checks.check_dtype(NAME, "vis", vis, checks.FLOATS)
    checks.check_dtype(NAME, "table", table, (vis.dtype,))
    checks.check_dtype(NAME, "idx", idx, (torch.int64,))
    checks.check_dtype(NAME, "text_ids", text_ids, (torch.int64,))
    checks.check_dtype(NAME, "layout", layout, (torch.int32,))
    checks.check_dtype(NAME, "pos", pos, checks.INTEGERS)
    checks.check_dtype(NAME, "text_pos", text_pos, (pos.dtype,))
    checks.check_shape(NAME, "vis", vis, (None, None), "[T, D]")
    checks.check_shape(NAME, "table", table, (None, vis.shape[1]), "[V, D]")
    for label, tensor in (("idx", idx), ("text_ids", text_ids), ("layout", layout)):
        checks.check_shape(NAME, label, tensor, (None,), "one row")
    checks.check_shape(NAME, "pos", pos, (None, len(vis)), "[P, T]")
    checks.check_shape(NAME, "text_pos", text_pos, (len(pos), len(text_ids)), "[P, L]")
    if labels is not None:
        checks.check_dtype(NAME, "labels", labels, (torch.int64,))
        checks.check_shape(NAME, "labels", labels, (len(text_ids),), "[L]")
    if newline is not None:
        checks.check_dtype(NAME, "newline", newline, (vis.dtype,))
        checks.check_shape(NAME, "newline", newline, (vis.shape[1],), "[D]")
    if gate is not None:
        checks.check_dtype(NAME, "gate", gate, checks.FLOATS)
        checks.check_shape(NAME, "gate", gate, (len(idx),), "[K]")
    checks.check_devices(
        NAME, vis=vis, idx=idx, text_ids=text_ids, table=table, layout=layout, pos=pos, text_pos=text_pos,
        labels=labels, newline=newline, gate=gate,
    )  # fmt: skip
    if checks.can_read(layout):
        _check_ranges(idx, len(vis), text_ids, len(table), layout, has_newline=newline is not None)


def _check_ranges(
    idx: Tensor, n_vis: int, text_ids: Tensor, n_words: int, layout: Tensor, *, has_newline: bool
) -> None:
    if len(idx) and (int(idx[0]) < 0 or int(idx[-1]) >= n_vis or (idx.diff() <= 0).any()):
        raise RequestError(
            f"{NAME} got idx from {int(idx.min())} to {int(idx.max())} for {n_vis} visual rows",
            "Kept rows must rise and lie among the rows there are",
            "Take idx from segment_select or greedy_select over the same rows",
        )
    least = NEWLINE if has_newline else 0
    if len(text_ids) and (int(text_ids.min()) < least or int(text_ids.max()) >= n_words):
        raise RequestError(
            f"{NAME} got text_ids from {int(text_ids.min())} to {int(text_ids.max())}",
            f"The table has {n_words} words, and {NEWLINE} stands for a newline, which was "
            f"{'' if has_newline else 'not '}given",
            "Give newline, or the ids of the tokenizer that belongs to the table",
        )
    if len(layout) and (int(layout.min()) < -len(idx) or int(layout.max()) >= len(text_ids)):
        raise RequestError(
            f"{NAME} got layout from {int(layout.min())} to {int(layout.max())}",
            f"There are {len(text_ids)} text rows, from 0 up, and {len(idx)} kept rows, from -1 down",
            "Write v for text row v and -v - 1 for kept row v",
        )
    named = layout[layout < 0]
    if len(named.unique()) != len(named):
        raise RequestError(
            f"{NAME} got layout with a kept row named twice",
            "The gradient of a kept row is stored once and not summed",
            "Name each kept row at most once",
        )


def _check_lengths(lengths: Tensor, layout: Tensor) -> None:
    checks.check_dtype(NAME, "lengths", lengths, (torch.int32,))
    checks.check_shape(NAME, "lengths", lengths, (None,), "[B]")
    checks.check_devices(NAME, layout=layout, lengths=lengths)
    if checks.can_read(lengths) and ((lengths < 0).any() or int(lengths.sum()) != len(layout)):
        raise RequestError(
            f"{NAME} got lengths that sum to {int(lengths.sum())}",
            f"layout has {len(layout)} rows, each of which belongs to one sequence",
            "Give the rows of each sequence, visual ones included",
        )
