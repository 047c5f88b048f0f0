"""What `attn_colmean` means, with the whole attention matrix in float64; for tests and walkthroughs only."""

import torch
from torch import Tensor


def attn_colmean_reference(
    q: Tensor, k: Tensor, cu: Tensor, lse: Tensor | None = None, *, scale: float, query_stride: int = 1
) -> Tensor:
    """Average the columns of each segment's attention matrix.

    Args:
        q: [T, H, d].
        k: [T, H, d].
        cu: [S+1].
        lse: [H, T], or None for the softmax's own.
        scale: of the logits.
        query_stride: every how many-th query of a segment is used.

    Returns:
        [T] float64.
    """
    mean = torch.zeros(len(q), dtype=torch.float64)
    for start, stop in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        rows = range(start, stop, query_stride)
        logits = torch.einsum("mhd,nhd->hmn", q[rows].double(), k[start:stop].double()) * scale
        norm = logits.logsumexp(dim=2) if lse is None else lse[:, rows].double()
        if len(rows):
            mean[start:stop] = (logits - norm[:, :, None]).exp().mean(dim=(0, 1))
    return mean


def lse_reference(q: Tensor, k: Tensor, cu: Tensor, scale: float) -> Tensor:
    """The logarithm of each row's sum of exponentials, as attention kernels return it: [H, T] float64."""
    lse = torch.zeros(q.shape[1], len(q), dtype=torch.float64)
    for start, stop in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        logits = torch.einsum("mhd,nhd->hmn", q[start:stop].double(), k[start:stop].double()) * scale
        lse[:, start:stop] = logits.logsumexp(dim=2)
    return lse
