"""The best k tokens of each segment in their own order, and how a budget is shared among segments.

A rising order keeps positions rising, which rotary embeddings and causal masks need. The number kept in all is known
on the host, so no result waits for the device.
"""

from typing import Any

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.kernels import backend, checks

NAME = "segment_select"
_SMALLEST = 1e-9  # remainders closer than this are equal: sums of float64 differ by less


def segment_select(
    scores: Float[Tensor, " p"], cu: Int32[Tensor, " s1"], k: Int32[Tensor, " s"], total: int
) -> tuple[Int64[Tensor, " n"], Int32[Tensor, " s1"]]:
    """Keep the k[s] highest scores of each segment.

    Ties go to the lowest index, and -0.0 ties with 0.0. NaN is refused on the CPU; on CUDA, where looking would wait
    for the device, NaN comes after everything else, -inf included (`checks.values_checked()` refuses it there too).

    Args:
        scores: [T] float32, float16 or bfloat16, compared in float32; may be inf.
        cu: [S+1] offsets of the segments: 0, rising, T.
        k: [S] how many to keep, each from 0 to its segment's length.
        total: K, the sum of `k`, known to the caller: `allocate_budget` gives it out exactly.

    Returns:
        idx: [K] indices into `scores`, rising.
        cu_kept: [S+1] offsets of each segment's picks in `idx`.

    Raises:
        RequestError: wrong shapes, dtypes, devices; on the CPU also wrong offsets, counts, total, and NaN.

    Example:
        >>> scores, cu = torch.tensor([1.0, 3.0, 3.0, 2.0]), torch.tensor([0, 3, 4], dtype=torch.int32)
        >>> idx, cu_kept = segment_select(scores, cu, torch.tensor([1, 1], dtype=torch.int32), 2)
        >>> idx.tolist(), cu_kept.tolist()
        ([1, 3], [0, 1, 2])
    """
    return _segment_select(scores, cu, k, total)


def allocate_budget(weights: Float[Tensor, " s"], total: int, cap: Int32[Tensor, " s"]) -> Int32[Tensor, " s"]:
    """Share `total` tokens among segments by largest remainder: the sum is exact, no segment gets more than it has.

    The quota of segment s is min(cap_s, lambda w_s), with the lambda that makes quotas sum to `total`: what a full
    segment cannot take goes to the others in proportion to their weights. Each gets the whole part of its quota, and
    the largest remainders get one more, the lowest index first among equals. Segments of weight 0 get something only
    when all others are full, and then equal shares. Torch operations on the device of `weights`, none of which waits.

    Args:
        weights: [S] 0 or more, in any unit.
        total: tokens to give out, from 0 to the sum of `cap`.
        cap: [S] the most that each segment can take: its length.

    Raises:
        RequestError: wrong shapes or dtypes, negative total; on the CPU also a negative or infinite weight, a negative
            cap, and a total above the sum of `cap`.

    Example:
        >>> allocate_budget(torch.tensor([1.0, 1.0, 2.0]), 10, torch.tensor([9, 9, 4], dtype=torch.int32)).tolist()
        [3, 3, 4]
    """
    name = "allocate_budget"
    checks.check_dtype(name, "weights", weights, checks.FLOATS)
    checks.check_dtype(name, "cap", cap, (torch.int32,))
    checks.check_shape(name, "weights", weights, (None,), "[S]")
    checks.check_shape(name, "cap", cap, (len(weights),), "[S]")
    checks.check_devices(name, weights=weights, cap=cap)
    checks.check_not_negative(name, "weights", weights)
    checks.check_not_negative(name, "cap", cap)
    if total < 0 or (checks.can_read(cap) and total > int(cap.sum())):
        raise RequestError(
            f"{name} got total={total}",
            f"The segments have room for {int(cap.sum()) if total >= 0 else 'no fewer than 0'} tokens",
            "Lower the budget, or raise cap",
        )
    weight, limit = weights.double(), cap.double()
    is_first = weight > 0
    first_room = (limit * is_first).sum().clamp(max=total)
    quota = _quota(weight, limit * is_first, first_room)
    quota = quota + _quota((~is_first).double(), limit * ~is_first, total - first_room)
    floor = (quota + _SMALLEST).floor()
    remainder = ((quota - floor) / _SMALLEST).round()
    rank = torch.empty_like(cap)
    order = remainder.sort(descending=True, stable=True).indices
    rank[order] = torch.arange(len(cap), dtype=cap.dtype, device=cap.device)
    return (floor + (rank < total - floor.sum())).to(torch.int32)


def _quota(weight: Tensor, limit: Tensor, room: Tensor) -> Tensor:
    """min(limit, lambda weight) that sums to `room`; where weight is 0 it is 0."""
    if not len(weight):
        return weight
    # in the order in which segments fill as lambda grows, what all hold when segment i has just filled
    fills_at, order = torch.where(weight > 0, limit / weight, torch.inf).sort(stable=True)
    filled, still = limit[order].cumsum(0), weight[order]
    still = (still.sum() - still.cumsum(0)).clamp(min=0)
    held = filled + torch.where(still > 0, fills_at * still, 0.0)
    is_full = (held <= room + _SMALLEST) & fills_at.isfinite()
    full_sum = torch.where(is_full, limit[order], 0.0).sum()
    open_weight = torch.where(is_full, 0.0, weight[order]).sum()
    unit = torch.where(open_weight > 0, (room - full_sum) / open_weight, 0.0)
    quota = torch.empty_like(limit)
    quota[order] = torch.where(is_full, limit[order], torch.minimum(unit * weight[order], limit[order]))
    return quota


def eager(scores: Tensor, cu: Tensor, k: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The operator in PyTorch: one stable sort of all segments, no loop and no wait on either device."""
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    # as signed integers, negative floats fall where they should rise: turn all their bits but the sign
    key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    key = torch.where(scores.isnan(), -(2**31), key)
    token = torch.arange(len(scores), device=scores.device)
    segment = torch.bucketize(token, cu[1:].long(), right=True)
    order = (segment * 2**32 + (2**31 - 1 - key)).argsort(stable=True)
    keep = torch.empty_like(token, dtype=torch.bool)
    keep[order] = token - cu[segment] < k[segment]  # a sorted token's place in its segment
    place = torch.where(keep, keep.cumsum(0) - 1, total)
    idx = torch.zeros(total + 1, dtype=torch.int64, device=scores.device)
    idx[place.clamp(max=total)] = token
    return idx[:total].clone(), _offsets(k)


def launch(scores: Tensor, cu: Tensor, k: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The bare Triton launch: checks devices only. Arguments as of `segment_select`.

    Raises:
        RequestError: no Triton, or tensors that it cannot take.
    """
    kernel = backend.load_kernels(__package__)
    with backend.on_device(NAME, scores, cu, k):
        n_segments = len(cu) - 1
        idx = torch.empty(total, dtype=torch.int64, device=scores.device)
        cu_kept = torch.empty(n_segments + 1, dtype=torch.int32, device=scores.device)
        if n_segments == 0:
            return idx, cu_kept.zero_()
        kernel.select(scores.contiguous(), cu.contiguous(), k.contiguous(), idx, cu_kept)
    return idx, cu_kept


@torch.library.custom_op(f"lightbox::{NAME}", mutates_args=(), device_types="cpu")
def _segment_select(scores: Tensor, cu: Tensor, k: Tensor, total: int) -> tuple[Tensor, Tensor]:
    _check(scores, cu, k, total)
    return eager(scores, cu, k, total)


@_segment_select.register_kernel("cuda")
def _on_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    _check(*arguments)
    return launch(*arguments)


@_segment_select.register_fake
def _shapes(scores: Tensor, cu: Tensor, k: Tensor, total: int) -> tuple[Tensor, Tensor]:
    return scores.new_empty(total, dtype=torch.int64), torch.empty_like(cu)


def _check(scores: Tensor, cu: Tensor, k: Tensor, total: int) -> None:
    checks.check_dtype(NAME, "scores", scores, checks.FLOATS[:3])
    checks.check_shape(NAME, "scores", scores, (None,), "[T]")
    checks.check_devices(NAME, scores=scores, cu=cu, k=k)
    checks.check_offsets(NAME, cu, len(scores))
    checks.check_counts(NAME, k, cu, total)
    checks.check_no_nan(NAME, "scores", scores)


def _offsets(k: Tensor) -> Tensor:
    return torch.cat([k.new_zeros(1), k.cumsum(0, dtype=torch.int32)])
