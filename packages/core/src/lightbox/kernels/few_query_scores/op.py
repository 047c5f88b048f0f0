"""How much a few queries look at each key: rows of attention for a class token, the last token, or words that rate.

Towers and language models run attention that keeps no weights. One row of it costs one look at the keys, so it is
computed anew from queries and keys instead of asking every layer for its whole matrix.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.kernels import backend, checks

NAME = "few_query_scores"
REDUCTIONS = ("mean", "sum", "per_head")
MAX_HEAD = 256
"""Widest head: with it, blocks of queries and keys in float32 take 64 KB of the 99 KB of shared memory."""


def few_query_scores(
    q: Float[Tensor, "b k m e"],
    k: Float[Tensor, "b g t e"],
    *,
    scale: float,
    key_range: tuple[int, int] | None = None,
    lse: Float[Tensor, "b k m"] | None = None,
    reduce: str = "mean",
) -> Float[Tensor, "b n"] | Float[Tensor, "b k n"]:
    """Reduce rows of attention over heads and queries: s_n = 1/(H M) sum_hm exp(scale q_hm . k_n - lse_hm).

    Every query looks at every key; there is no mask. Rows are normalised over all keys, also where scores of a range
    are wanted, so the mean over the whole range sums to 1 and over a part to less. No gradient flows: it is a score for
    a hard choice.

    Args:
        q: [B, Hq, M, d] queries as attention sees them, after any rotary embedding: M = 1 for a class token or the last
            token, up to some 64 words; for all tokens of a tower `attn_colmean` is the better form.
        k: [B, Hkv, N, d] keys, likewise, of the dtype of `q`. Hkv divides Hq: key head j serves the query heads from
            j Hq / Hkv up to the next, and is not repeated for them.
        scale: factor of the logits, usually d ** -0.5.
        key_range: first key whose score is wanted and one past the last, for example the image's; None is all.
        lse: [B, Hq, M] float32 natural logarithm of each row's sum of exponentials, from attention that has run; None
            computes it. Given one, keys outside `key_range` are not read. Of causal attention, it normalises a word's
            row over the keys that the word sees, where all of `key_range` stands before it.
        reduce: "mean" over heads and queries, "sum" over both, or "per_head": the mean over queries alone.

    Returns:
        [B, n] float32, 0 or more, n keys of the range; [B, Hq, n] with "per_head".

    Raises:
        RequestError: wrong shapes, dtypes, devices, heads that keys' heads do not divide, no query, a range that is
            not among the keys, an unknown reduction, on CUDA d above `MAX_HEAD`. NaN in q or k spreads to its row of
            the batch.

    Example:
        >>> one = torch.zeros(1, 2, 4, 8)
        >>> few_query_scores(one[:, :, -1:], one, scale=1.0, key_range=(1, 4)).tolist()
        [[0.25, 0.25, 0.25]]
    """
    first, end = (0, k.shape[2]) if key_range is None else key_range
    return _few_query_scores(q, k, scale, first, end, lse, reduce)


def eager(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    key_range: tuple[int, int] | None = None,
    lse: Tensor | None = None,
    reduce: str = "mean",
) -> Tensor:
    """The operator in PyTorch, in float32, with the logits of all rows at once."""
    batch, n_heads, n_queries, width = q.shape
    first, end = (0, k.shape[2]) if key_range is None else key_range
    if lse is not None:
        k = k[:, :, first:end]
    # the queries of all heads that share a key head are rows of one product
    rows = q.float().reshape(batch, k.shape[1], n_heads // k.shape[1] * n_queries, width)
    logits = (rows @ k.float().mT * scale).view(batch, n_heads, n_queries, k.shape[2])
    share = logits.softmax(dim=3)[..., first:end] if lse is None else (logits - lse[..., None]).exp()
    if reduce == "per_head":
        return share.mean(dim=2)
    return share.mean(dim=(1, 2)) if reduce == "mean" else share.sum(dim=(1, 2))


def launch(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    key_range: tuple[int, int] | None = None,
    lse: Tensor | None = None,
    reduce: str = "mean",
) -> Tensor:
    """The bare Triton launch: checks devices and the head's width only. Arguments as of `few_query_scores`.

    Raises:
        RequestError: no Triton, tensors that it cannot take, or d above `MAX_HEAD`.
    """
    kernel = backend.load_kernels(__package__)
    batch, n_heads, n_queries, width = q.shape
    first, end = (0, k.shape[2]) if key_range is None else key_range
    if width > MAX_HEAD:
        raise RequestError(
            f"{NAME}.launch got heads of width {width}",
            f"Blocks of queries and keys fit into 99 KB of shared memory up to a width of {MAX_HEAD}",
            "Call it with CPU tensors, or use the form in PyTorch, eager(), on CUDA",
        )

    def make(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=q.device)

    with backend.on_device(NAME, q, k, lse):
        groups = n_heads if reduce == "per_head" else 1
        scores = make(batch, n_heads, end - first) if reduce == "per_head" else make(batch, end - first)
        if scores.numel() == 0:
            return scores
        factor = {"mean": 1 / (n_heads * n_queries), "sum": 1.0, "per_head": 1 / n_queries}[reduce]
        keeps_logits = kernel.keeps_logits(q, k)
        rows = make(batch, n_heads, n_queries, end - first) if keeps_logits else None
        if lse is None:
            parts = make(batch, n_heads, n_queries, kernel.n_parts(k))
            kernel.row_lse(q, k, parts, rows, scale, first)
            k = k[:, :, first:end]
        else:
            parts, k = lse.contiguous()[..., None], k[:, :, first:end]
            if keeps_logits:
                kernel.row_lse(q, k, None, rows, scale, 0)
        if keeps_logits:
            kernel.sum_rows(rows, parts, scores, factor, groups)
        else:
            share = scores if reduce == "per_head" else make(batch, n_heads, end - first)
            kernel.key_share(q, k, parts, share, scale, factor)
            if reduce != "per_head":
                kernel.sum_rows(share, None, scores, 1.0, groups)
    return scores


@torch.library.custom_op(f"lightbox::{NAME}", mutates_args=(), device_types="cpu")
def _few_query_scores(
    q: Tensor, k: Tensor, scale: float, first: int, end: int, lse: Tensor | None, reduce: str
) -> Tensor:
    _check(q, k, first, end, lse, reduce)
    return eager(q, k, scale=scale, key_range=(first, end), lse=lse, reduce=reduce)


@_few_query_scores.register_kernel("cuda")
def _on_cuda(q: Tensor, k: Tensor, scale: float, first: int, end: int, lse: Tensor | None, reduce: str) -> Tensor:
    _check(q, k, first, end, lse, reduce)
    return launch(q, k, scale=scale, key_range=(first, end), lse=lse, reduce=reduce)


@_few_query_scores.register_fake
def _shape(q: Tensor, k: Tensor, scale: float, first: int, end: int, lse: Tensor | None, reduce: str) -> Tensor:
    lead = q.shape[:2] if reduce == "per_head" else q.shape[:1]
    return q.new_empty(*lead, end - first, dtype=torch.float32)


def _check(q: Tensor, k: Tensor, first: int, end: int, lse: Tensor | None, reduce: str) -> None:
    if reduce not in REDUCTIONS:
        raise RequestError(
            f"{NAME} got reduce='{reduce}'", f"It knows {', '.join(REDUCTIONS)}", "Choose one of them as reduce"
        )
    checks.check_dtype(NAME, "q", q, checks.FLOATS)
    checks.check_dtype(NAME, "k", k, (q.dtype,))
    checks.check_shape(NAME, "q", q, (None, None, None, None), "[B, Hq, M, d]")
    checks.check_shape(NAME, "k", k, (q.shape[0], None, None, q.shape[3]), "[B, Hkv, N, d] with B and d of q")
    checks.check_devices(NAME, q=q, k=k, lse=lse)
    if k.shape[1] == 0 or q.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise RequestError(
            f"{NAME} got q with {q.shape[1]} heads and k with {k.shape[1]}",
            "Each head of keys serves equally many heads of queries, at least one",
            "Give k as the layer projects it, before any repeating",
        )
    if q.shape[2] == 0:
        raise RequestError(
            f"{NAME} got q of shape {list(q.shape)}", "Without a query nothing looks at the keys", "Give M of 1 or more"
        )
    if not 0 <= first <= end <= k.shape[2]:
        raise RequestError(
            f"{NAME} got key_range=({first}, {end}) for {k.shape[2]} keys",
            "A range begins at 0 or later, does not end before it begins, and ends with the last key at the latest",
            "Give key_range as (first key, one past the last), counted from the first key of k",
        )
    if lse is not None:
        checks.check_dtype(NAME, "lse", lse, (torch.float32,))
        checks.check_shape(NAME, "lse", lse, tuple(q.shape[:3]), "[B, Hq, M]")
