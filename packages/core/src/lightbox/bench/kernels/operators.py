"""Every operator that is timed: what it is given at a shape, what it is compared with, the least it must do.

A further operator is one more function that makes cases and one more line in `OPERATORS`.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightbox.bench.kernels import peers
from lightbox.bench.kernels.shapes import Shape
from lightbox.kernels.assign_merge.op import assign_merge
from lightbox.kernels.attn_colmean.op import attn_colmean
from lightbox.kernels.few_query_scores.op import few_query_scores
from lightbox.kernels.greedy_select.op import greedy_select
from lightbox.kernels.ragged_splice.op import ragged_splice
from lightbox.kernels.segment_select.op import segment_select
from lightbox.kernels.temporal_keep.op import temporal_keep
from lightbox.pruning.types import offsets

PUBLISHED, PLAIN, COMPILED = "published form", "PyTorch", "torch.compile"
FLASH = "flash-colreduce"
PERCEPTIBLE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""dtype -> largest difference of two forms' results, relative to the largest value."""


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Args:
        name: as tables show it.
        ours: a call of the operator.
        peers: name -> a call that gives the same.
        to_compile: makes the call that `torch.compile` serves; given its `compile`.
        n_bytes: the least that must be read and written.
        flop: the least that must be computed.
        goals: name of a peer -> how many times as fast, at this shape on a card.
        is_picking: results are indices, of which two forms may choose differently where two gains nearly tie.
    """

    name: str
    ours: Callable[[], Any]
    peers: Mapping[str, Callable[[], Any]]
    to_compile: Callable[[Callable], Callable[[], Any]]
    n_bytes: int
    flop: float = 0.0
    goals: Mapping[str, float] = field(default_factory=dict)
    is_picking: bool = False


class Inputs:
    """Random tensors of a shape, the same each time."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*size, generator=self._generator).to(self.device, dtype or self.dtype)

    def integers(self, high: int, *size: int) -> Tensor:
        """Numbers from 0 to high - 1."""
        return torch.randint(0, high, size, generator=self._generator).to(self.device)

    def counts(self, numbers: Any) -> Tensor:
        """int32 on the device."""
        return torch.tensor(list(numbers), dtype=torch.int32, device=self.device)

    def offsets(self, lengths: Any) -> Tensor:
        """int32 offsets of segments on the device."""
        return offsets(lengths).to(self.device)

    def kept(self) -> tuple[Tensor, Tensor]:
        """Random kept tokens of each image, rising, and their offsets."""
        shape = self.shape
        scores = self.normal(sum(shape.images), dtype=torch.float32)
        cu, k = self.offsets(shape.images), self.counts(shape.keep)
        return segment_select(scores, cu, k, sum(shape.keep))

    def text(self, what: str, dtype: torch.dtype | None = None) -> str:
        """Shape, sizes and dtype for a case's name."""
        return f"{self.shape.name}, {what}, {str(dtype or self.dtype).removeprefix('torch.')}"


def select_cases(given: Inputs) -> Iterator[Case]:
    """Top-k of each tile; a quarter of the tiles' tokens, shared unevenly."""
    lengths = given.shape.tiles
    numbers = [max(1, length // 4 - 3 * (place % 3)) for place, length in enumerate(lengths)]
    scores = given.normal(sum(lengths), dtype=torch.float32)
    cu, k, total, most = given.offsets(lengths), given.counts(numbers), sum(numbers), max(numbers)
    args = (scores, lengths, k, cu, most, total)
    yield Case(
        f"segment_select, {given.text(f'{spelled(lengths)} tokens, keep {total}', torch.float32)}",
        lambda: segment_select(scores, cu, k, total)[0],
        {
            PUBLISHED: lambda: peers.sort_each(scores, lengths, k),
            PLAIN: lambda: peers.top_side_by_side(*args),
        },
        lambda compiler: bound(compiler(peers.top_side_by_side), *args),
        n_bytes=4 * len(scores) + 8 * total,
        goals={PUBLISHED: 20, PLAIN: 4, COMPILED: 3},
        is_picking=True,
    )


def greedy_cases(given: Inputs) -> Iterator[Case]:
    """Max-min, and the DPP with relevance, both among the tokens of an image."""
    shape = given.shape
    lengths, numbers, total, most = shape.images, shape.keep, sum(shape.keep), max(shape.keep)
    feat, relevance = given.normal(sum(lengths), shape.width), given.normal(sum(lengths), dtype=torch.float32).sigmoid()
    cu, k, wide = given.offsets(lengths), given.counts(numbers), max(lengths)
    args, what = (feat, lengths, k, cu, most, total), f"{spelled(lengths)} x {shape.width}, keep {total}"
    n_bytes = feat.nbytes + 8 * total
    yield Case(
        f"greedy_select maxmin, {given.text(what)}",
        lambda: greedy_select(feat, cu, k, total, max_len=wide),
        {
            PUBLISHED: lambda: peers.pick_far_again(feat, lengths, numbers),
            PLAIN: lambda: peers.pick_far(*args),
        },
        lambda compiler: bound(peers.pick_far, *args, compiler(peers.far_step)),
        n_bytes=n_bytes,
        flop=float(sum(n * n * shape.width for n in lengths)),  # the first pick asks for every pair, once
        goals={PUBLISHED: 8, PLAIN: 8, COMPILED: 3},
        is_picking=True,
    )
    rows = sum(n * min(count, n / 2) * 2 * shape.width for n, count in zip(lengths, numbers, strict=True))
    yield Case(
        f"greedy_select dpp, {given.text(what)}",
        lambda: greedy_select(feat, cu, k, total, rule="dpp", relevance=relevance, max_len=wide),
        {
            PUBLISHED: lambda: peers.pick_likely_by_image(feat, lengths, numbers, relevance),
            PLAIN: lambda: peers.pick_likely(*args, relevance),
        },
        lambda compiler: bound(peers.pick_likely, *args, relevance, compiler(peers.likely_step)),
        n_bytes=n_bytes + relevance.nbytes,
        flop=rows + sum(n * count**2 for n, count in zip(lengths, numbers, strict=True)),
        goals={PUBLISHED: 10, PLAIN: 10, COMPILED: 3},
        is_picking=True,
    )


def colmean_cases(given: Inputs) -> Iterator[Case]:
    """Column means of the tower's attention; for towers without a class token also with the log-sum-exp given."""
    shape = given.shape
    lengths, scale = shape.patches, shape.head_width**-0.5
    q, k = (given.normal(sum(lengths), shape.heads, shape.head_width) for _ in range(2))
    cu = given.offsets(lengths)
    what = f"{spelled(lengths)} tokens, {shape.heads} heads of {shape.head_width}"
    flash = flash_colreduce(q, k, lengths, scale)
    for lse in (None, _lse_of(q, k, lengths, scale)) if "S4" in shape.name else (None,):
        args = (q, k, lengths, scale, lse)
        yield Case(
            f"attn_colmean{'' if lse is None else ' with lse'}, {given.text(what)}",
            lambda lse=lse: attn_colmean(q, k, cu, lse, scale=scale),
            {
                PUBLISHED: lambda: peers.mean_of_map(q, k, lengths, scale),
                PLAIN: lambda args=args: peers.mean_in_pieces(*args),
                **({FLASH: flash} if flash else {}),
            },
            lambda compiler, args=args: bound(compiler(peers.mean_in_pieces), *args),
            n_bytes=q.nbytes + k.nbytes + 4 * len(q) + (0 if lse is None else lse.nbytes),
            flop=float(sum(2 * n * n * shape.heads * shape.head_width for n in lengths)),
            goals={PUBLISHED: 4, PLAIN: 3, COMPILED: 2, FLASH: 1.4, "floor": 0.35},
        )


def query_cases(given: Inputs) -> Iterator[Case]:
    """How much one query of each sequence, a class token, looks at the others; sequences of one length."""
    shape = given.shape
    length, batch = shape.patches[0], len(shape.patches)
    if set(shape.patches) != {length}:
        return
    scale, size = shape.head_width**-0.5, (batch, shape.heads, length, shape.head_width)
    q, k = given.normal(*size), given.normal(*size)
    first = q[:, :, :1]
    yield Case(
        f"few_query_scores, {given.text(f'{batch} x {length} keys, {shape.heads} heads of {shape.head_width}')}",
        lambda: few_query_scores(first, k, scale=scale, key_range=(1, length)),
        {
            PUBLISHED: lambda: peers.row_of_map(q, k, scale),
            PLAIN: lambda: peers.one_row(first, k, scale),
        },
        lambda compiler: bound(compiler(peers.one_row), first, k, scale),
        n_bytes=first.nbytes + k.nbytes + 4 * batch * (length - 1),
        flop=float(2 * k.numel()),
        goals={PUBLISHED: 25, PLAIN: 2.5, COMPILED: 1.2},
    )


def temporal_cases(given: Inputs) -> Iterator[Case]:
    """What changed from slice to slice of a stack, the first kept whole."""
    shape = given.shape
    n_frames, n_tokens = len(shape.images), shape.images[0]
    if "S4" not in shape.name or n_frames == 1:
        return
    x = given.normal(n_frames, n_tokens, shape.width)
    total = n_tokens + sum(shape.keep[1:])
    yield Case(
        f"temporal_keep, {given.text(f'{spelled(shape.images)} x {shape.width}, keep {total}')}",
        lambda: temporal_keep(x, k_total=total, min_tokens=0)[0].flatten().nonzero()[:, 0],
        {
            PUBLISHED: lambda: peers.keep_by_threshold(x, total),
            PLAIN: lambda: peers.keep_changed(x, total),
        },
        lambda compiler: bound(compiler(peers.keep_changed), x, total),
        n_bytes=x.nbytes + 8 * total,
        flop=float(2 * x.numel()),
        goals={PUBLISHED: 4, PLAIN: 3.5, COMPILED: 1.3, "floor": 0.7},
        is_picking=True,
    )


def merge_cases(given: Inputs) -> Iterator[Case]:
    """Dropped tokens into the mean of the kept one most like them; the metric is as wide as a head."""
    shape = given.shape
    lengths, numbers = shape.images, shape.keep
    metric, x = given.normal(sum(lengths), shape.head_width), given.normal(sum(lengths), shape.width)
    idx, cu_kept = given.kept()
    cu = given.offsets(lengths)
    x.requires_grad_(shape.has_gradients)
    upper = given.normal(len(idx), shape.width)
    both = " forward and backward" if shape.has_gradients else ""

    def through(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        if not shape.has_gradients:
            return bound(call, *args)
        return lambda: torch.autograd.grad(call(*args), x, upper)[0]

    args = (metric, x, idx, lengths, numbers)
    moved = metric.nbytes + x.nbytes + upper.nbytes + idx.nbytes
    yield Case(
        f"assign_merge{both}, {given.text(f'{spelled(lengths)} x {shape.width}, keep {len(idx)}')}",
        through(lambda: assign_merge(metric, x, idx, cu, cu_kept)[0]),
        {
            PUBLISHED: through(peers.merge_one_by_one, *args),
            PLAIN: through(peers.merge_side_by_side, *args, cu, cu_kept),
        },
        lambda compiler: through(compiler(peers.merge_side_by_side), *args, cu, cu_kept),
        n_bytes=moved + (x.nbytes + upper.nbytes if both else 0),
        flop=float(sum(2 * (n - t) * t * shape.head_width for n, t in zip(lengths, numbers, strict=True))),
        goals={PUBLISHED: 30, PLAIN: 2 if both else 3, COMPILED: 1.5 if both else 2, "floor": 0.25},
    )


def splice_cases(given: Inputs) -> Iterator[Case]:
    """Each image's kept rows behind the first of its text tokens."""
    shape = given.shape
    n_rows, text = len(shape.images), shape.text
    vis, table = given.normal(sum(shape.images), shape.lm_width), given.normal(shape.vocabulary, shape.lm_width)
    idx, _ = given.kept()
    vis.requires_grad_(shape.has_gradients)
    ids = given.integers(shape.vocabulary, n_rows * text)
    layout, lengths = layout_of(shape.keep, text)
    layout, lengths = layout.to(given.device), given.counts(lengths)
    pos, text_pos = (torch.arange(n, device=given.device).expand(shape.axes, -1) for n in (len(vis), len(ids)))
    pos, text_pos = pos.contiguous(), text_pos.contiguous()
    upper = given.normal(len(layout), shape.lm_width)
    both = " forward and backward" if shape.has_gradients else ""

    def through(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        if not shape.has_gradients:
            return lambda: tuple(call(*args)[:3])
        return lambda: torch.autograd.grad(call(*args)[0], vis, upper)[0]

    args = (vis, idx, ids, table)
    behind = (layout, pos, text_pos, ids)
    n_bytes = 2 * upper.nbytes + 2 * 8 * (shape.axes + 1) * len(layout) + layout.nbytes + idx.nbytes
    yield Case(
        f"ragged_splice{both}, {given.text(f'{len(layout)} rows of {shape.lm_width}, {len(idx)} of them visual')}",
        through(lambda: ragged_splice(*args, *behind, lengths=lengths)),
        {
            PUBLISHED: through(peers.join_one_by_one, *args, pos, text_pos, ids, shape.keep, text),
            PLAIN: through(peers.join_by_index, *args, *behind),
        },
        lambda compiler: through(compiler(peers.join_by_index), *args, *behind),
        n_bytes=n_bytes + (upper.nbytes + vis.nbytes if both else 0),
        goals={PUBLISHED: 6, PLAIN: 3 if both else 4, COMPILED: 1.5 if both else 1.8, "floor": 0.65},
    )


@dataclass(frozen=True)
class Operator:
    """An operator of `lightbox.kernels`.

    Args:
        cases: makes its cases from inputs.
        has_gradients: timed at shapes of training too, forward and backward.
    """

    cases: Callable[[Inputs], Iterator[Case]]
    has_gradients: bool = False


OPERATORS = {
    "segment_select": Operator(select_cases),
    "greedy_select": Operator(greedy_cases),
    "attn_colmean": Operator(colmean_cases),
    "few_query_scores": Operator(query_cases),
    "temporal_keep": Operator(temporal_cases),
    "assign_merge": Operator(merge_cases, has_gradients=True),
    "ragged_splice": Operator(splice_cases, has_gradients=True),
}
"""Name of its folder in `lightbox.kernels`, and of its file of tests -> the operator."""


def bound(call: Callable, *args: Any) -> Callable[[], Any]:
    """A call without arguments."""
    return lambda: call(*args)


def layout_of(keep: Any, text: int) -> tuple[Tensor, list[int]]:
    """Layout of rows that show one image each behind their first token, and their lengths."""
    pieces, first = [], 0
    for number, count in enumerate(keep):
        words = torch.arange(number * text, (number + 1) * text)
        pieces += [words[:1], -torch.arange(first, first + count) - 1, words[1:]]
        first += count
    return torch.cat(pieces).int(), [count + text for count in keep]


def spelled(lengths: Any) -> str:
    """Lengths of segments, shortly.

    Example:
        >>> spelled([576, 576]), spelled([121, 64])
        ('2 x 576', '121 + 64')
    """
    return f"{len(lengths)} x {lengths[0]}" if len(set(lengths)) == 1 else " + ".join(map(str, lengths))


def flash_colreduce(q: Tensor, k: Tensor, lengths: Any, scale: float) -> Callable[[], Any] | None:
    """The package's column mean; None where it does not serve: no CUDA, no package, or images of several lengths."""
    if q.device.type != "cuda" or importlib.util.find_spec("flash_colreduce") is None or len(set(lengths)) > 1:
        return None
    reduce = importlib.import_module("flash_colreduce").flash_colreduce
    shape = (len(lengths), lengths[0], *q.shape[1:])
    queries, keys = (part.view(shape).transpose(1, 2).contiguous() for part in (q, k))
    return lambda: reduce(queries, keys, reduction="mean", is_causal=False, scale=scale).mean(dim=1).flatten()


def _lse_of(q: Tensor, k: Tensor, lengths: Any, scale: float) -> Tensor:
    pieces = []
    for queries, keys in zip(q.split(list(lengths)), k.split(list(lengths)), strict=True):
        heads = zip(queries.unbind(1), keys.unbind(1), strict=True)
        pieces.append(torch.stack([((one.float() @ other.float().T) * scale).logsumexp(1) for one, other in heads]))
    return torch.cat(pieces, dim=1)
