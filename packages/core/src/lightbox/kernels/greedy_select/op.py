"""Diverse tokens, picked one after another: farthest-point sampling, or the most likely set of a determinantal process.

"maxmin" is DivPrune's rule (Alvar et al., CVPR 2025): the first pick is the token farthest from its nearest
neighbour, each next one the token farthest from its nearest pick, in cosine distance. "dpp" is CDPruner's (Zhang et
al., NeurIPS 2025): greedy maximum a posteriori of a DPP with L = diag(r) C diag(r), C the cosines, by an incremental
Cholesky factor (Chen et al., NeurIPS 2018).
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.kernels import backend, checks

NAME = "greedy_select"
RULES = ("maxmin", "dpp")
MAX_LEN = 16384
"""Tokens of a segment whose running state one program of the kernel can hold."""
MAX_BUFFER_BYTES = 4 << 30
_WORST = 2.0  # beyond every cosine
_AT_ONCE = 1 << 26  # cosines that the form in PyTorch holds, 256 MiB, unless one segment alone has more


def greedy_select(
    feat: Float[Tensor, "p d"],
    cu: Int32[Tensor, " s1"],
    k: Int32[Tensor, " s"],
    total: int,
    *,
    rule: str = "maxmin",
    relevance: Float[Tensor, " p"] | None = None,
    eps: float = 1e-6,
    max_len: int | None = None,
) -> Int64[Tensor, " n"]:
    """Pick k[s] tokens of each segment that differ from each other.

    Segments know nothing of each other, so permuting the batch permutes the result. Ties go to the lowest index.
    Arithmetic is float32: in float16 the DPP goes wrong from the first picks.

    Args:
        feat: [T, D] float; a row of zeros is at cosine 0 to all.
        cu: [S+1] offsets of the segments: 0, rising, T.
        k: [S] how many to pick, each from 0 to its segment's length.
        total: K, the sum of `k`.
        rule: "maxmin" or "dpp".
        relevance: [T] r, 0 or more, for "dpp" only; [0, 1] is usual. None is 1 everywhere.
        eps: for "dpp": where no token raises the determinant by more than this factor, the rank is used up, and the
            rest is picked by falling relevance. Also the floor of a pivot.
        max_len: for CUDA only: tokens of the longest segment, known to the caller. The matrix of cosines takes
            4 T max_len bytes; None takes T, which is right for one segment and wasteful for many.

    Returns:
        [K] indices into `feat`, rising in each segment (the order of picking is not returned: what follows needs
        tokens in their own order).

    Raises:
        RequestError: wrong shapes, dtypes, devices, an unknown rule, relevance with "maxmin", eps not above 0; on the
            CPU also wrong offsets, counts, total, NaN and negative relevance. On CUDA, features with NaN give
            some k tokens, and a max_len that is too large for memory or the kernel is refused.

    Example:
        >>> feat = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
        >>> whole = torch.tensor([0, 4], dtype=torch.int32)
        >>> greedy_select(feat, whole, torch.tensor([2], dtype=torch.int32), 2).tolist()
        [0, 3]
    """
    return _greedy_select(feat, cu, k, total, rule, relevance, eps, max_len)


def eager(feat: Tensor, cu: Tensor, k: Tensor, total: int, rule: str, relevance: Tensor | None, eps: float) -> Tensor:
    """The operator on a CPU. Reads `cu` and `k`."""
    offsets, counts = cu.tolist(), k.tolist()
    unit = F.normalize(feat.detach().float(), dim=1)
    if rule == "maxmin":
        return _pick_far(unit, offsets, counts)
    weight = torch.ones(len(feat), device=feat.device) if relevance is None else relevance.float()
    return _pick_likely(unit, weight, cu, k, offsets, counts, eps)


def _pick_far(unit: Tensor, offsets: list[int], counts: list[int]) -> Tensor:
    """What max-min picks on a CPU, one segment after another: indices into `unit`, rising in each segment.

    In NumPy, whose calls on a row cost a quarter of those of PyTorch, and there are three a pick.
    """
    picks = [np.zeros(0, dtype=np.int64)]
    for start, stop, count in zip(offsets, offsets[1:], counts, strict=False):
        if count == 0:
            continue
        own = unit[start:stop]
        # the nearest neighbour is not oneself; later rounds never read the diagonal, since what is picked is out
        cosine = (own @ own.T).fill_diagonal_(-_WORST).cpu().numpy()
        nearest = np.full(stop - start, -np.inf, dtype=np.float32)
        pick = cosine.max(axis=1).argmin()
        order = np.empty(count, dtype=np.int64)
        for step in range(count):
            order[step] = pick
            np.maximum(nearest, cosine[pick], out=nearest)
            nearest[pick] = np.inf
            pick = nearest.argmin()
        picks.append(start + np.sort(order))
    return torch.from_numpy(np.concatenate(picks)).to(unit.device)


def _pick_likely(
    unit: Tensor, weight: Tensor, cu: Tensor, k: Tensor, offsets: list[int], counts: list[int], eps: float
) -> Tensor:
    """What the DPP picks, likewise: segments side by side, one step of all of them after another."""
    lengths = [stop - start for start, stop in zip(offsets, offsets[1:], strict=False)]
    is_direction = unit.any(dim=1)
    picks = [torch.zeros(0, dtype=torch.int64, device=unit.device)]
    first = 0
    while first < len(lengths):
        last = first + 1  # as many segments as fit, padded to the longest of them
        while last < len(lengths) and (last + 1 - first) * max(lengths[first : last + 1]) ** 2 <= _AT_ONCE:
            last += 1
        wide, most = max(lengths[first:last]), max(counts[first:last])
        if most > 0:
            place = torch.arange(wide, device=unit.device)
            is_token = place < cu[first : last + 1].diff()[:, None]  # s n
            where = (cu[first:last, None] + place).clamp(max=len(unit) - 1)
            cosine = unit[where] @ unit[where].mT  # s n n
            # a token's cosine with itself is 1 and not 1 +- 1e-7, which would decide the DPP's ties
            cosine.diagonal(dim1=1, dim2=2).copy_(is_direction[where])
            picks.append(where[_pick_dpp(cosine, weight[where], is_token, k[first:last], most, eps)])
        first = last
    return torch.cat(picks)


def _pick_dpp(cosine: Tensor, weight: Tensor, is_token: Tensor, k: Tensor, most: int, eps: float) -> Tensor:
    """Which tokens the DPP picks: s n."""
    row = torch.arange(len(cosine), device=cosine.device)
    gain = cosine.diagonal(dim1=1, dim2=2) * weight.square()
    gain = gain.masked_fill(~is_token, -torch.inf)
    weight_left = weight.masked_fill(~is_token, -torch.inf)
    factor = cosine.new_zeros(len(cosine), most, cosine.shape[1])  # rows of the Cholesky factor: s t n
    is_picked = torch.zeros_like(is_token)
    for step in range(most):
        best, pick = gain.max(dim=1)
        has_rank = best > eps
        pick = torch.where(has_rank, pick, weight_left.argmax(dim=1))
        is_picked[row, pick] |= step < k
        past = factor[:, :step]
        seen = (past[row, :, pick][:, None] @ past)[:, 0]
        column = weight[row, pick][:, None] * cosine[row, pick] * weight
        new = (column - seen) / best.clamp(min=eps).sqrt()[:, None]
        new = torch.where(has_rank[:, None] & is_token, new, 0.0)
        factor[:, step] = new
        gain = gain - new.square()
        gain[row, pick] = -torch.inf
        weight_left[row, pick] = -torch.inf
    return is_picked


def launch(
    feat: Tensor,
    cu: Tensor,
    k: Tensor,
    total: int,
    rule: str = "maxmin",
    relevance: Tensor | None = None,
    eps: float = 1e-6,
    max_len: int | None = None,
) -> Tensor:
    """The bare Triton launch: checks devices and memory only. Arguments as of `greedy_select`.

    Raises:
        RequestError: no Triton, tensors that it cannot take, `max_len` above `MAX_LEN`, or a matrix of cosines above
            `MAX_BUFFER_BYTES`.
    """
    kernel = backend.load_kernels(__package__)
    wide = min(len(feat) if max_len is None else max_len, len(feat))
    with backend.on_device(NAME, feat, cu, k, relevance):
        idx = torch.empty(total, dtype=torch.int64, device=feat.device)
        if total == 0:
            return idx
        if wide > MAX_LEN or 4 * len(feat) * wide > MAX_BUFFER_BYTES:
            raise RequestError(
                f"{NAME}.launch got {len(feat)} tokens with max_len={max_len}",
                f"A segment may have {MAX_LEN} tokens, and the matrix of cosines {MAX_BUFFER_BYTES >> 30} GiB",
                "Pass max_len = the longest segment, which the caller knows, or call it for fewer segments at a time",
            )
        cosine = torch.empty(len(feat), wide, dtype=torch.float32, device=feat.device)
        if rule == "maxmin":
            nearest = torch.empty(len(feat), dtype=torch.float32, device=feat.device)
            kernel.cosines(feat, cu.contiguous(), cosine, nearest)
            kernel.pick_far(cosine, nearest, cu.contiguous(), k.contiguous(), idx)
        else:
            kernel.cosines(feat, cu.contiguous(), cosine, None)
            factor = torch.empty(total, wide, dtype=torch.float32, device=feat.device)
            weight = None if relevance is None else relevance.contiguous()
            kernel.pick_dpp(cosine, weight, factor, cu.contiguous(), k.contiguous(), idx, eps)
    return idx


@torch.library.custom_op(f"lightbox::{NAME}", mutates_args=(), device_types="cpu")
def _greedy_select(
    feat: Tensor,
    cu: Tensor,
    k: Tensor,
    total: int,
    rule: str,
    relevance: Tensor | None,
    eps: float,
    max_len: int | None,
) -> Tensor:
    _check(feat, cu, k, total, rule, relevance, eps, max_len)
    return eager(feat, cu, k, total, rule, relevance, eps)


@_greedy_select.register_kernel("cuda")
def _on_cuda(*arguments: Any) -> Tensor:
    _check(*arguments)
    return launch(*arguments)


@_greedy_select.register_fake
def _shapes(
    feat: Tensor,
    cu: Tensor,
    k: Tensor,
    total: int,
    rule: str,
    relevance: Tensor | None,
    eps: float,
    max_len: int | None,
) -> Tensor:
    return feat.new_empty(total, dtype=torch.int64)


def _check(
    feat: Tensor,
    cu: Tensor,
    k: Tensor,
    total: int,
    rule: str,
    relevance: Tensor | None,
    eps: float,
    max_len: int | None,
) -> None:
    if rule not in RULES:
        raise RequestError(f"{NAME} got rule='{rule}'", f"It knows {' and '.join(RULES)}", "Choose one of them as rule")
    if rule == "maxmin" and relevance is not None:
        raise RequestError(
            f"{NAME} got relevance with rule='maxmin'",
            "Max-min looks at distances alone, and relevance would be ignored",
            "Leave relevance out, or take rule='dpp'",
        )
    if not eps > 0:
        raise RequestError(f"{NAME} got eps={eps}", "A pivot of 0 cannot be divided by", "Give an eps above 0")
    checks.check_dtype(NAME, "feat", feat, checks.FLOATS)
    checks.check_shape(NAME, "feat", feat, (None, None), "[T, D]")
    checks.check_devices(NAME, feat=feat, cu=cu, k=k, relevance=relevance)
    checks.check_offsets(NAME, cu, len(feat))
    checks.check_counts(NAME, k, cu, total)
    longest = int(cu.diff().max()) if checks.can_read(cu) and len(cu) > 1 else 0
    if max_len is not None and max_len < longest:
        raise RequestError(
            f"{NAME} got max_len={max_len}",
            f"The longest segment has {longest} tokens, and the matrix of cosines is made {max_len} wide",
            "Give the length of the longest segment, or leave max_len out",
        )
    checks.check_no_nan(NAME, "feat", feat)
    if relevance is not None:
        checks.check_dtype(NAME, "relevance", relevance, checks.FLOATS)
        checks.check_shape(NAME, "relevance", relevance, (len(feat),), "[T]")
        checks.check_not_negative(NAME, "relevance", relevance)
