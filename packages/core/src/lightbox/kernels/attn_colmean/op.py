"""How much attention each token gets: the column mean of full attention, for towers without a class token.

The attention matrix is never stored. Its rows are normalised by their log-sum-exp, given by the attention that the
tower has run anyway, or computed here in one more pass.
"""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.kernels import backend, checks

NAME = "attn_colmean"
MAX_HEAD = 256
"""Widest head: with it, blocks of queries and keys in float32 take 64 KB of the 99 KB of shared memory."""
_AT_ONCE = 1 << 23  # logits that the form in PyTorch holds: 32 MiB


def attn_colmean(
    q: Float[Tensor, "p k e"],
    k: Float[Tensor, "p k e"],
    cu: Int32[Tensor, " s1"],
    lse: Float[Tensor, "k p"] | None = None,
    *,
    scale: float,
    query_stride: int = 1,
) -> Float[Tensor, " p"]:
    """Average attention over queries and heads: s_n = 1/(H M) sum_hm exp(scale q_hm . k_hn - lse_hm).

    Each token attends to its own segment. With the softmax's own lse the result sums to 1 over each segment. No
    gradient flows: it is a score for a hard choice.

    Args:
        q: [T, H, d] queries as attention sees them, after any rotary embedding.
        k: [T, H, d] keys, likewise, of the dtype of `q`.
        cu: [S+1] offsets of the segments: 0, rising, T.
        lse: [H, T] float32 natural logarithm of each row's sum of exponentials; None computes it.
        scale: factor of the logits, usually d ** -0.5.
        query_stride: use queries 0, stride, 2 stride, ... of each segment: an estimate at 1/stride of the cost.

    Returns:
        [T] float32, 0 or more.

    Raises:
        RequestError: wrong shapes, dtypes, devices, a stride under 1, on CUDA d above `MAX_HEAD`; on the CPU also wrong
            offsets. NaN in q or k spreads to its segment.

    Example:
        >>> one = torch.zeros(4, 1, 2)
        >>> attn_colmean(one, one, torch.tensor([0, 4], dtype=torch.int32), scale=1.0).tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    return _attn_colmean(q, k, cu, lse, scale, query_stride)


def eager(q: Tensor, k: Tensor, cu: Tensor, lse: Tensor | None, scale: float, query_stride: int) -> Tensor:
    """The operator in PyTorch: logits of some queries at a time, in float32. Reads `cu`."""
    n_heads = q.shape[1]
    mean = torch.zeros(len(q), dtype=torch.float32, device=q.device)
    offsets = cu.tolist()
    for start, stop in zip(offsets, offsets[1:], strict=False):
        queries = (q[start:stop:query_stride].float() * scale).transpose(0, 1)  # h m d
        keys = k[start:stop].float().permute(1, 2, 0)  # h d n
        norm = None if lse is None else lse[:, start:stop:query_stride, None]
        n_queries = queries.shape[1]
        step = max(1, _AT_ONCE // max(1, n_heads * (stop - start)))
        for begin in range(0, n_queries, step):
            logits = queries[:, begin : begin + step] @ keys
            if norm is None:
                share = logits.softmax(dim=2)
            else:
                share = logits.sub_(norm[:, begin : begin + step]).exp_()
            mean[start:stop] += share.sum(dim=(0, 1))
        mean[start:stop] /= max(1, n_heads * n_queries)
    return mean


def launch(
    q: Tensor, k: Tensor, cu: Tensor, lse: Tensor | None = None, *, scale: float, query_stride: int = 1
) -> Tensor:
    """The bare Triton launch: checks devices and the head's width only. Arguments as of `attn_colmean`.

    Raises:
        RequestError: no Triton, tensors that it cannot take, or d above `MAX_HEAD`.
    """
    kernel = backend.load_kernels(__package__)
    n_tokens, n_heads, width = q.shape
    if width > MAX_HEAD:
        raise RequestError(
            f"{NAME}.launch got heads of width {width}",
            f"Blocks of queries and keys fit into 99 KB of shared memory up to a width of {MAX_HEAD}",
            "Call it with CPU tensors, or use the form in PyTorch, eager(), on CUDA",
        )
    with backend.on_device(NAME, q, k, cu, lse):
        cu = cu.contiguous()
        if lse is None:
            lse = torch.empty(n_heads, n_tokens, dtype=torch.float32, device=q.device)
            kernel.row_lse(q, k, cu, lse, scale, query_stride)
        share = torch.empty(n_heads, n_tokens, dtype=torch.float32, device=q.device)
        mean = torch.empty(n_tokens, dtype=torch.float32, device=q.device)
        kernel.column_mean(q, k, cu, lse, share, mean, scale, query_stride)
    return mean


@torch.library.custom_op(f"lightbox::{NAME}", mutates_args=(), device_types="cpu")
def _attn_colmean(q: Tensor, k: Tensor, cu: Tensor, lse: Tensor | None, scale: float, query_stride: int) -> Tensor:
    _check(q, k, cu, lse, query_stride)
    return eager(q, k, cu, lse, scale, query_stride)


@_attn_colmean.register_kernel("cuda")
def _on_cuda(q: Tensor, k: Tensor, cu: Tensor, lse: Tensor | None, scale: float, query_stride: int) -> Tensor:
    _check(q, k, cu, lse, query_stride)
    return launch(q, k, cu, lse, scale=scale, query_stride=query_stride)


@_attn_colmean.register_fake
def _shape(q: Tensor, k: Tensor, cu: Tensor, lse: Tensor | None, scale: float, query_stride: int) -> Tensor:
    return q.new_empty(len(q), dtype=torch.float32)


def _check(q: Tensor, k: Tensor, cu: Tensor, lse: Tensor | None, query_stride: int) -> None:
    if query_stride < 1:
        raise RequestError(
            f"{NAME} got query_stride={query_stride}", "Every query is the most that can be used", "Give 1 or more"
        )
    checks.check_dtype(NAME, "q", q, checks.FLOATS)
    checks.check_dtype(NAME, "k", k, (q.dtype,))
    checks.check_shape(NAME, "q", q, (None, None, None), "[T, H, d]")
    checks.check_shape(NAME, "k", k, tuple(q.shape), "[T, H, d] as q (repeat keys that groups of heads share)")
    checks.check_devices(NAME, q=q, k=k, cu=cu, lse=lse)
    checks.check_offsets(NAME, cu, len(q))
    if lse is not None:
        checks.check_dtype(NAME, "lse", lse, (torch.float32,))
        checks.check_shape(NAME, "lse", lse, (q.shape[1], len(q)), "[H, T]")
