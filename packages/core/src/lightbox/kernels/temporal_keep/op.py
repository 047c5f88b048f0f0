"""What changed since the frame before, or the slice below, stays: tokens of videos and volumes.

EVS (arXiv 2510.14624) keeps the tokens of a video whose cosine to the frame before is lowest, so many in all. Hulu-Med
(arXiv 2510.08668) keeps the patches whose mean absolute difference is above a threshold; its released code means to
keep the first frame whole, compares a wrong number with the threshold, and keeps one token of it.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.kernels import backend, checks

NAME = "temporal_keep"
METRICS = ("cos", "l1")
MAX_WIDTH = 16384
"""Channels of a token that one program of the kernel can hold, together with those of the frame before."""


def temporal_keep(
    x: Float[Tensor, "s p d"],
    *,
    metric: str = "cos",
    tau: float | None = None,
    k_total: int | None = None,
    force_first: bool = True,
    min_tokens: int = 1,
) -> tuple[Bool[Tensor, "s p"], Float[Tensor, "s p"]]:
    """Keep the tokens that differ from the same place in the frame before.

    Every frame keeps its `min_tokens` most changed tokens, and the first frame all of them. Beyond these stay the
    tokens that changed by more than `tau`, or the most changed ones of all frames until `k_total` stay. Ties go to the
    earlier frame, then to the lower place. No gradient flows: it is a hard choice.

    Args:
        x: [F, Nf, D] frames or slices in order, tokens of each, channels: features, or pixel values of patches.
        metric: "cos" for 1 - cosine (EVS), from 0 to 2 but for rounding; a token of zeros is at cosine 0 to all. "l1"
            for the mean absolute difference (Hulu-Med), in the unit of `x`.
        tau: a token stays whose change is above it; 0 or more, in the unit of the metric. The number kept is then the
            device's to know.
        k_total: tokens that stay in all, exactly; known to the host, as the sizes of what follows are. Give this or
            `tau`.
        force_first: whether the first frame, which has none before it, stays whole. Otherwise its change is 0 and it
            keeps `min_tokens`, as in Hulu-Med's released code.
        min_tokens: tokens that each frame keeps at least, from 0 to Nf.

    Returns:
        mask: [F, Nf] bool, True where a token stays.
        score: [F, Nf] float32 change; in the first frame inf if it is forced, else 0.

    Raises:
        RequestError: wrong shape or dtype, an unknown metric, both or neither of `tau` and `k_total`, a threshold
            below 0, counts that frames do not have or that promised tokens exceed, on CUDA a D above `MAX_WIDTH`; on
            the CPU also NaN. On CUDA a token with NaN, or with NaN before it, is the least wanted.

    Example:
        >>> frames = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
        >>> mask, score = temporal_keep(frames, k_total=3)
        >>> mask.tolist(), score[1].tolist()
        ([[True, True], [False, True]], [0.0, 1.0])
    """
    return _temporal_keep(x, metric, tau, k_total, force_first, min_tokens)


def eager(
    x: Tensor, metric: str, tau: float | None, k_total: int | None, force_first: bool, min_tokens: int
) -> tuple[Tensor, Tensor]:
    """The operator in PyTorch."""
    now, before = x[1:].float(), x[:-1].float()
    change = 1 - F.cosine_similarity(now, before, dim=2) if metric == "cos" else (now - before).abs().mean(dim=2)
    score = torch.cat([change.new_full((min(1, len(x)), x.shape[1]), _first_change(force_first)), change])
    return keep(score, tau, k_total, force_first, min_tokens), score


def launch(
    x: Tensor, metric: str, tau: float | None, k_total: int | None, force_first: bool, min_tokens: int
) -> tuple[Tensor, Tensor]:
    """The bare Triton launch, and the choice in PyTorch: checks the device and the width only.

    Raises:
        RequestError: no Triton, a tensor that it cannot take, or D above `MAX_WIDTH`.
    """
    kernel = backend.load_kernels(__package__)
    if x.shape[2] > MAX_WIDTH:
        raise RequestError(
            f"{NAME}.launch got tokens of width {x.shape[2]}",
            f"A program holds a token of two frames, up to a width of {MAX_WIDTH}",
            "Call it with CPU tensors, or use the form in PyTorch, eager(), on CUDA",
        )
    with backend.on_device(NAME, x):
        score = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
        if score.numel():
            kernel.change(x, score, _first_change(force_first), is_cos=metric == "cos")
    return keep(score, tau, k_total, force_first, min_tokens), score


def keep(score: Tensor, tau: float | None, k_total: int | None, force_first: bool, min_tokens: int) -> Tensor:
    """Which tokens of given scores stay: [F, Nf] bool. Stable sorts on either device, none of which waits."""
    order = torch.where(score.isnan(), -math.inf, score)
    is_promised = torch.zeros_like(score, dtype=torch.bool)
    if min_tokens:
        best = order.sort(dim=1, descending=True, stable=True).indices[:, :min_tokens]
        is_promised.scatter_(1, best, True)
    if force_first:
        is_promised[:1] = True
    if tau is not None:
        return is_promised | (score > tau)
    best = order.masked_fill(is_promised, math.inf).flatten().sort(descending=True, stable=True).indices[:k_total]
    return torch.zeros_like(is_promised).view(-1).index_fill_(0, best, True).view(score.shape)


def _first_change(force_first: bool) -> float:
    return math.inf if force_first else 0.0


@torch.library.custom_op(f"lightbox::{NAME}", mutates_args=(), device_types="cpu")
def _temporal_keep(
    x: Tensor, metric: str, tau: float | None, k_total: int | None, force_first: bool, min_tokens: int
) -> tuple[Tensor, Tensor]:
    _check(x, metric, tau, k_total, force_first, min_tokens)
    return eager(x, metric, tau, k_total, force_first, min_tokens)


@_temporal_keep.register_kernel("cuda")
def _on_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    _check(*arguments)
    return launch(*arguments)


@_temporal_keep.register_fake
def _shapes(
    x: Tensor, metric: str, tau: float | None, k_total: int | None, force_first: bool, min_tokens: int
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:2], dtype=torch.bool), x.new_empty(x.shape[:2], dtype=torch.float32)


def _check(x: Tensor, metric: str, tau: float | None, k_total: int | None, force_first: bool, min_tokens: int) -> None:
    if metric not in METRICS:
        raise RequestError(
            f"{NAME} got metric='{metric}'", f"It knows {' and '.join(METRICS)}", "Choose one of them as metric"
        )
    checks.check_dtype(NAME, "x", x, checks.FLOATS)
    checks.check_shape(NAME, "x", x, (None, None, None), "[F, Nf, D]")
    n_frames, n_tokens, width = x.shape
    if width == 0:
        raise RequestError(f"{NAME} got x of shape {list(x.shape)}", "Without channels nothing changes", "Give D >= 1")
    if (tau is None) == (k_total is None):
        raise RequestError(
            f"{NAME} got tau={tau} and k_total={k_total}",
            "A threshold and a number are two rules, and one decides",
            "Give tau or k_total",
        )
    if tau is not None and not tau >= 0:  # NaN is not 0 or more either
        raise RequestError(
            f"{NAME} got tau={tau}", "A change is 0 or more, so it would keep all or nothing", "Give tau of 0 or more"
        )
    if not 0 <= min_tokens <= n_tokens:
        raise RequestError(
            f"{NAME} got min_tokens={min_tokens} for frames of {n_tokens} tokens",
            "No frame can keep more tokens than it has, or fewer than none",
            f"Give min_tokens from 0 to {n_tokens}",
        )
    least = 0 if n_frames == 0 else (n_tokens if force_first else min_tokens) + min_tokens * (n_frames - 1)
    if k_total is not None and not least <= k_total <= n_frames * n_tokens:
        raise RequestError(
            f"{NAME} got k_total={k_total} for {n_frames} frames of {n_tokens} tokens",
            f"min_tokens={min_tokens} and force_first={force_first} promise {least}, and there are "
            f"{n_frames * n_tokens}",
            f"Give k_total from {least} to {n_frames * n_tokens}, or promise less",
        )
    checks.check_no_nan(NAME, "x", x)
