"""What `assign_merge` means, one kept token after another, in float64; for tests and walkthroughs only."""

import torch
import torch.nn.functional as F
from torch import Tensor


def assign_merge_reference(
    metric: Tensor,
    x: Tensor,
    idx: Tensor,
    cu: Tensor,
    cu_kept: Tensor,
    weight: Tensor | None = None,
    mode: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Assign every token to a kept one of its segment and combine; autograd gives the gradients of x and weight.

    Args:
        metric: [T, dm].
        x: [T, D].
        idx: [K].
        cu: [S+1].
        cu_kept: [S+1].
        weight: [T], None is 1.
        mode: "mean" or "sum_plus_target".

    Returns:
        [K, D] float64 and, for each token, the place in `idx` that it went to, -1 for none: [T] int32.
    """
    x, unit = x.double(), F.normalize(metric.double(), dim=1)
    weight = torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double()
    assign = torch.full((len(x),), -1, dtype=torch.int32)
    segments = zip(cu[:-1].tolist(), cu[1:].tolist(), cu_kept[:-1].tolist(), cu_kept[1:].tolist(), strict=True)
    for start, stop, first, last in segments:
        if first < last:
            likeness = unit[start:stop] @ unit[idx[first:last]].T
            assign[start:stop] = first + likeness.argmax(dim=1).int()
    assign[idx] = torch.arange(len(idx), dtype=torch.int32)
    rows = []
    for place, target in enumerate(idx.tolist()):
        dropped = [token for token in (assign == place).nonzero()[:, 0].tolist() if token != target]
        shares = weight[dropped][:, None] * x[dropped]
        if mode == "mean":
            whole = weight[target] + weight[dropped].sum()
            row = (weight[target] * x[target] + shares.sum(dim=0)) / whole if whole > 0 else x[target]
        else:
            whole = weight[dropped].sum()
            row = x[target] + shares.sum(dim=0) / whole if whole > 0 else x[target]
        rows.append(row)
    return torch.stack(rows) if rows else x[:0], assign
