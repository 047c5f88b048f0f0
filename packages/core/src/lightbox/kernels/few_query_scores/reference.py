"""What `few_query_scores` means, with whole rows of attention in float64; for tests and walkthroughs only."""

import torch
from torch import Tensor


def few_query_scores_reference(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    key_range: tuple[int, int] | None = None,
    lse: Tensor | None = None,
    reduce: str = "mean",
) -> Tensor:
    """Rows of attention, reduced over heads and queries. Gradients flow to q and k, for a soft choice.

    Args:
        q: [B, Hq, M, d].
        k: [B, Hkv, N, d]; key head j serves query heads j Hq / Hkv up to the next.
        scale: of the logits.
        key_range: first key wanted and one past the last; rows are normalised over all keys all the same.
        lse: [B, Hq, M], or None for the softmax's own.
        reduce: "mean" or "sum" over heads and queries, "per_head" for the mean over queries alone.

    Returns:
        [B, n] float64, or [B, Hq, n] per head.
    """
    keys = k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = torch.einsum("bhmd,bhnd->bhmn", q.double(), keys) * scale
    norm = logits.logsumexp(dim=3) if lse is None else lse.double()
    first, end = key_range or (0, k.shape[2])
    share = (logits - norm[..., None]).exp()[..., first:end]
    if reduce == "per_head":
        return share.mean(dim=2)
    return share.mean(dim=(1, 2)) if reduce == "mean" else share.sum(dim=(1, 2))


def few_query_lse_reference(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The logarithm of each row's sum of exponentials, as attention kernels return it: [B, Hq, M] float64."""
    keys = k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (torch.einsum("bhmd,bhnd->bhmn", q.double(), keys) * scale).logsumexp(dim=3)
