"""What `segment_select` and `allocate_budget` mean, one number at a time; for tests and walkthroughs only."""

import math

import torch
from torch import Tensor


def segment_select_reference(scores: Tensor, cu: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each segment's tokens by falling score, NaN last, ties by index; keep the first k, in rising order.

    Args:
        scores: [T].
        cu: [S+1].
        k: [S], each at most its segment's length.

    Returns:
        Indices [K] int64, offsets of each segment's among them [S+1] int32.
    """
    values = scores.double().tolist()
    kept: list[int] = []
    offsets = [0]
    for start, stop, count in zip(cu[:-1].tolist(), cu[1:].tolist(), k.tolist(), strict=True):
        # -0.0 == 0.0 in Python too, so signed zeros tie
        order = sorted(range(start, stop), key=lambda i: (math.isnan(values[i]), -values[i], i))
        if any(math.isnan(values[i]) for i in range(start, stop)):  # NaN would spoil the comparison of keys
            real = sorted((i for i in range(start, stop) if not math.isnan(values[i])), key=lambda i: (-values[i], i))
            order = real + [i for i in range(start, stop) if math.isnan(values[i])]
        kept += sorted(order[:count])
        offsets.append(len(kept))
    return torch.tensor(kept, dtype=torch.int64), torch.tensor(offsets, dtype=torch.int32)


def allocate_budget_reference(weights: Tensor, total: int, cap: Tensor) -> Tensor:
    """Give out `total` by largest remainder, in rounds: shares above their cap are cut to it, the rest is shared anew.

    Args:
        weights: [S], 0 or more; segments of weight 0 share equally what the others cannot take.
        total: at most the sum of `cap`.
        cap: [S].

    Returns:
        Counts [S] int32, whose sum is `total`.
    """
    weight, limit = weights.double().tolist(), cap.tolist()
    quota = [0.0] * len(limit)
    left = total
    for tier in ([s for s, w in enumerate(weight) if w > 0], [s for s, w in enumerate(weight) if w == 0]):
        share = {s: weight[s] or 1.0 for s in tier}
        open_ones = set(tier)
        room = min(left, sum(limit[s] for s in tier))
        left -= room
        while open_ones:
            unit = room / sum(share[s] for s in open_ones)
            full = {s for s in open_ones if share[s] * unit >= limit[s]}
            for s in full:
                quota[s] = limit[s]
                room -= limit[s]
            open_ones -= full
            if not full:
                for s in open_ones:
                    quota[s] = share[s] * unit
                break
    counts = [math.floor(q + 1e-9) for q in quota]
    # rounded, so that equal remainders are equal whatever order they were computed in
    by_remainder = sorted(range(len(quota)), key=lambda s: (-round(quota[s] - counts[s], 9), s))
    for s in by_remainder[: total - sum(counts)]:
        counts[s] += 1
    return torch.tensor(counts, dtype=torch.int32)
