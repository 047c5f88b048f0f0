"""A linear layer and its low-rank addition in one autograd step: no copies, no float32 inputs, additions by addmm.

y = W x + b + s B A x. Peft computes the base, clones it, turns x into the dtype of A, and keeps what autograd wants of
each product. Here the addition is written into the base's output, A and B are turned into the dtype of x (they are
small), and x, A x, A and B are all that is kept; W is dequantised again in the backward pass, as bitsandbytes does.
"""

from collections import Counter
from functools import lru_cache
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightbox.adapters.plain import dense_weight

FUSED = "fused"


def use_fused(model: nn.Module) -> dict[str, int]:
    """Let peft's LoRA layers compute in one step where they can, in place, and count layers by what was decided.

    Returns:
        Layers under "fused", and under the reason why not: "dora", "dropout", "trained base", "no linear layer".
        Whatever is switched at run time (adapters off, several active, merged) is left to peft at that call.
    """
    layer_counts: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            reason = _why_not(module) or FUSED
            layer_counts[reason] += 1
            if reason == FUSED and not isinstance(module, _Fused):
                module.__class__ = _fused_class(type(module))  # keeps names, parameters and copies as they are
    return dict(layer_counts)


class FusedLinear(torch.autograd.Function):
    """Base and addition of one linear layer; first derivatives only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Module, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Compute the layer.

        Args:
            ctx: of autograd.
            x: ... in.
            base: a frozen linear layer, plain or quantised.
            a: r in, of the dtype of `x`.
            b: out r, of the dtype of `x`.
            scale: s.

        Returns:
            ... out, of the dtype of `x`.
        """
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        out = base(x).to(x.dtype)
        # in place: the base has just made it, and a copy is as large as the layer's output
        out.view(-1, out.shape[-1]).addmm_(low, b.T, alpha=scale)
        # the layer and not its dense weight, which would stay in memory until the backward pass
        ctx.base, ctx.scale = base, scale
        ctx.save_for_backward(rows, low, a, b)
        return out

    @staticmethod
    @once_differentiable  # second derivatives would need W again, and no loss here takes them
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        """Gradients of x, A and B: W^T g + s A^T B^T g, s B^T g x^T, s g (A x)^T."""
        rows, low, a, b = ctx.saved_tensors
        out = grad.reshape(-1, grad.shape[-1])
        low_grad = (out @ b).mul_(ctx.scale)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (out @ dense_weight(ctx.base, out.dtype)).addmm_(low_grad, a).view(*grad.shape[:-1], a.shape[1])
        a_grad = low_grad.T @ rows if ctx.needs_input_grad[2] else None
        b_grad = (out.T @ low).mul_(ctx.scale) if ctx.needs_input_grad[3] else None
        return x_grad, None, a_grad, b_grad, None


class _Fused:
    """The forward that is put before a LoRA layer's own."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or args or kwargs:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        name = active[0]
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        a, b = self.lora_A[name].weight.to(dtype), self.lora_B[name].weight.to(dtype)
        return FusedLinear.apply(x.to(dtype), self.get_base_layer(), a, b, self.scaling[name])  # type: ignore


@lru_cache(maxsize=16)
def _fused_class(kind: type) -> type:
    return type(f"Fused{kind.__name__}", (_Fused, kind), {})


def _why_not(layer: Any) -> str:
    """Why a layer cannot be fused for any of its adapters; "" where it can."""
    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear) or any(layer.lora_bias.values()):
        return "no linear layer"
    if any(parameter.requires_grad for parameter in base.parameters()):
        return "trained base"
    if layer.lora_variant:
        return "dora"
    # peft drops out the input of the addition alone: its mask would have to be kept too
    if any(isinstance(dropout, nn.Dropout) and dropout.p > 0 for dropout in layer.lora_dropout.values()):
        return "dropout"
    return ""
