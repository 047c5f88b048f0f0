"""Dropped tokens folded into the kept ones most like them, with gradients for tokens and weights.

VScan (Zhang et al., TMLR 2026) averages a kept token with those assigned to it; ToMe (Bolya et al., ICLR 2023) does so
weighted by how many patches each stands for; VisionZip (Yang et al., CVPR 2025) adds the mean of the assigned ones to
the kept one, so that norms grow.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.kernels import backend, checks

NAME = "assign_merge"
MODES = ("mean", "sum_plus_target")


def assign_merge(
    metric: Float[Tensor, "p m"],
    x: Float[Tensor, "p d"],
    idx: Int64[Tensor, " n"],
    cu: Int32[Tensor, " s1"],
    cu_kept: Int32[Tensor, " s1"],
    weight: Float[Tensor, " p"] | None = None,
    mode: str = "mean",
) -> tuple[Float[Tensor, "n d"], Int32[Tensor, " p"]]:
    """Fold every dropped token into the kept token of its segment that it is most like.

    a(j) = argmax_t cos(metric_j, metric_t) over the segment's kept tokens, the first among equals; a kept token stays
    its own. With w the weights and A_t the dropped tokens assigned to t,

        mean:             y_t = (w_t x_t + sum_A w_j x_j) / (w_t + sum_A w_j)
        sum_plus_target:  y_t = x_t + sum_A w_j x_j / sum_A w_j

    and y_t = x_t where a divisor is 0. The metric is compared in float32; sums are float32 (float64 for a float64 x).

    Args:
        metric: [T, dm] what likeness is measured on, for example the mean of a layer's keys over heads.
        x: [T, D] tokens.
        idx: [K] kept tokens, rising.
        cu: [S+1] offsets of the segments: 0, rising, T.
        cu_kept: [S+1] offsets of each segment's kept tokens in `idx`.
        weight: [T] 0 or more: sizes or scores. None is 1 everywhere.
        mode: "mean" or "sum_plus_target".

    Returns:
        y: [K, D] of the dtype of `x`; gradients flow to `x` and `weight`, first derivatives only.
        assign: [T] int32, the place in `idx` that a token went to; -1 in a segment that keeps nothing.

    Raises:
        RequestError: wrong shapes, dtypes, devices, an unknown mode; on the CPU also wrong offsets, indices outside
            their segment, a metric with NaN, a negative or infinite weight.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
        >>> whole, kept = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32)
        >>> y, assign = assign_merge(x, x, torch.tensor([0, 1]), whole, kept)
        >>> y.tolist(), assign.tolist()
        ([[1.0, 0.0], [0.0, 3.0]], [0, 1, 1])
    """
    y, assign, _ = _assign_merge(metric, x, idx, cu, cu_kept, weight, mode)
    return y, assign


def eager(
    metric: Tensor, x: Tensor, idx: Tensor, cu: Tensor, cu_kept: Tensor, weight: Tensor | None, mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator in PyTorch; also returns the divisors [K]. Reads `cu` and `cu_kept`."""
    assign = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    offsets, kept_offsets = cu.tolist(), cu_kept.tolist()
    unit = F.normalize(metric[idx].float(), dim=1)
    for segment, start in enumerate(offsets[:-1]):
        first, last, stop = kept_offsets[segment], kept_offsets[segment + 1], offsets[segment + 1]
        if first < last:  # a token's own norm scales all its cosines alike
            assign[start:stop] = first + (metric[start:stop].float() @ unit[first:last].T).argmax(dim=1)
    assign[idx] = torch.arange(len(idx), device=x.device)
    wide = torch.promote_types(x.dtype, torch.float32)
    share = torch.ones(len(x), dtype=wide, device=x.device) if weight is None else weight.to(wide)
    share = torch.where(assign >= 0, share, 0.0)
    if mode == "sum_plus_target":
        share = share.index_fill(0, idx, 0.0)
    bin_of = assign.clamp(min=0)
    rows = len(idx) or 1  # somewhere for tokens of no segment that keeps any
    whole = share.new_zeros(rows).index_add_(0, bin_of, share)[: len(idx)]
    y = share.new_zeros(rows, x.shape[1]).index_add_(0, bin_of, share[:, None] * x)[: len(idx)]
    y = y / torch.where(whole > 0, whole, 1.0)[:, None]
    target = x[idx].to(wide)
    y = torch.where(whole[:, None] > 0, y, target) if mode == "mean" else y + target
    return y.to(x.dtype), assign.int(), whole


def eager_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    idx: Tensor,
    assign: Tensor,
    whole: Tensor,
    weight: Tensor | None,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of x [T, D] and of weight [T], from that of y, in PyTorch.

    With W the divisor: dx_j = w_j dy_a / W and dw_j = dy_a . (x_j - mean_a) / W; the kept token of sum_plus_target has
    dx_t = dy_t and no share in the mean.
    """
    wide = whole.dtype
    if not len(idx):
        return torch.zeros_like(x), torch.zeros(len(x), dtype=wide, device=x.device)
    place = assign.long().clamp(min=0)
    divisor = whole[place]
    is_target = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill_(0, idx, True)
    is_shared = (assign >= 0) & (divisor > 0)
    passes_whole = is_target & (divisor == 0)  # y is x there
    if mode == "sum_plus_target":
        is_shared &= ~is_target
        passes_whole = is_target
    inverse = torch.where(is_shared, 1 / torch.where(divisor > 0, divisor, 1.0), 0.0)
    share = inverse if weight is None else inverse * weight
    upper = grad.to(wide)[place]
    x_grad = torch.where(passes_whole, 1.0, share)[:, None] * upper
    mean = y.to(wide)[place]
    if mode == "sum_plus_target":
        mean = mean - x.to(wide)[idx[place]]
    return x_grad.to(x.dtype), inverse * (upper * (x - mean)).sum(dim=1)


def launch(
    metric: Tensor,
    x: Tensor,
    idx: Tensor,
    cu: Tensor,
    cu_kept: Tensor,
    weight: Tensor | None = None,
    mode: str = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """The bare Triton launch: checks devices only. Arguments as of `assign_merge`; also returns the divisors [K].

    Raises:
        RequestError: no Triton, or tensors that it cannot take.
    """
    kernel = backend.load_kernels(__package__)
    with backend.on_device(NAME, metric, x, idx, cu, cu_kept, weight):
        cu, cu_kept, idx = cu.contiguous(), cu_kept.contiguous(), idx.contiguous()
        weight = None if weight is None else weight.contiguous()
        y = torch.empty(len(idx), x.shape[1], dtype=x.dtype, device=x.device)
        assign = torch.empty(len(x), dtype=torch.int32, device=x.device)
        whole = torch.empty(len(idx), dtype=torch.float32, device=x.device)
        kernel.assign(metric, idx, cu, cu_kept, assign)
        kernel.merge(x, idx, cu, cu_kept, assign, weight, y, whole, is_sum=mode == "sum_plus_target")
    return y, assign, whole


def launch_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    idx: Tensor,
    assign: Tensor,
    whole: Tensor,
    weight: Tensor | None,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """The bare Triton launch of `eager_backward`.

    Raises:
        RequestError: no Triton, or tensors that it cannot take.
    """
    kernel = backend.load_kernels(__package__)
    with backend.on_device(NAME, grad, x, y, idx, assign, whole, weight):
        x_grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        weight_grad = torch.empty(len(x), dtype=torch.float32, device=x.device)
        weight = None if weight is None else weight.contiguous()
        kernel.merge_backward(
            grad, x, y, idx.contiguous(), assign, whole, weight, x_grad, weight_grad, is_sum=mode == "sum_plus_target"
        )
    return x_grad, weight_grad


@torch.library.custom_op(f"lightbox::{NAME}", mutates_args=(), device_types="cpu")
def _assign_merge(
    metric: Tensor, x: Tensor, idx: Tensor, cu: Tensor, cu_kept: Tensor, weight: Tensor | None, mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    _check(metric, x, idx, cu, cu_kept, weight, mode)
    return eager(metric, x, idx, cu, cu_kept, weight, mode)


@_assign_merge.register_kernel("cuda")
def _on_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check(*arguments)
    return launch(*arguments)


@_assign_merge.register_fake
def _shapes(
    metric: Tensor, x: Tensor, idx: Tensor, cu: Tensor, cu_kept: Tensor, weight: Tensor | None, mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(len(idx), x.shape[1]),
        x.new_empty(len(x), dtype=torch.int32),
        x.new_empty(len(idx), dtype=wide),
    )


@torch.library.custom_op(f"lightbox::{NAME}_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    idx: Tensor,
    assign: Tensor,
    whole: Tensor,
    weight: Tensor | None,
    mode: str,
) -> tuple[Tensor, Tensor]:
    return eager_backward(grad, x, y, idx, assign, whole, weight, mode)


_backward.register_kernel("cuda")(launch_backward)


@_backward.register_fake
def _backward_shapes(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    idx: Tensor,
    assign: Tensor,
    whole: Tensor,
    weight: Tensor | None,
    mode: str,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(len(x), dtype=whole.dtype)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, x, idx, _, _, weight, ctx.mode = inputs
    y, assign, whole = output
    ctx.save_for_backward(x, y, idx, assign, whole, weight)
    ctx.mark_non_differentiable(assign, whole)


def _gradients(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, y, idx, assign, whole, weight = ctx.saved_tensors
    x_grad, weight_grad = _backward(grad, x, y, idx, assign, whole, weight, ctx.mode)
    x_grad = x_grad if ctx.needs_input_grad[1] else None
    weight_grad = weight_grad.to(weight.dtype) if ctx.needs_input_grad[5] else None
    return None, x_grad, None, None, None, weight_grad, None


_assign_merge.register_autograd(_gradients, setup_context=_keep_for_backward)


def _check(
    metric: Tensor, x: Tensor, idx: Tensor, cu: Tensor, cu_kept: Tensor, weight: Tensor | None, mode: str
) -> None:
    if mode not in MODES:
        raise RequestError(f"{NAME} got mode='{mode}'", f"It knows {' and '.join(MODES)}", "Choose one of them as mode")
    checks.check_dtype(NAME, "metric", metric, checks.FLOATS)
    checks.check_dtype(NAME, "x", x, checks.FLOATS)
    checks.check_shape(NAME, "x", x, (None, None), "[T, D]")
    checks.check_shape(NAME, "metric", metric, (len(x), None), "[T, dm]")
    checks.check_shape(NAME, "idx", idx, (None,), "[K]")
    checks.check_devices(NAME, metric=metric, x=x, idx=idx, cu=cu, cu_kept=cu_kept, weight=weight)
    checks.check_offsets(NAME, cu, len(x))
    checks.check_kept(NAME, idx, cu, cu_kept)
    checks.check_no_nan(NAME, "metric", metric)
    if weight is not None:
        checks.check_dtype(NAME, "weight", weight, checks.FLOATS)
        checks.check_shape(NAME, "weight", weight, (len(x),), "[T]")
        checks.check_not_negative(NAME, "weight", weight)
