"""Optimiser groups: which parameters decay, and at which rate each part learns."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightbox.errors import RequestError


def decay_groups(
    model: nn.Module, *, lr: float, weight_decay: float, lr_scale: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Group the trainable parameters for AdamW: matrices decay; norms, biases and other vectors do not.

    Args:
        model: only parameters with `requires_grad` are taken; a tied parameter is taken once.
        lr: peak learning rate, > 0.
        weight_decay: decoupled weight decay of matrices, >= 0.
        lr_scale: factor on `lr` by prefix of the parameter's name, for example ``{"projector.": 10.0}``; the longest
            matching prefix counts, others have factor 1.

    Returns:
        Groups in a fixed order with keys params, lr, weight_decay; empty ones left out.

    Raises:
        RequestError: where nothing is trainable, or a prefix matches no parameter.
    """
    prefixes = sorted(lr_scale or {}, key=len, reverse=True)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise RequestError("The model has no trainable parameter", "Nothing would learn", "Unfreeze or add a part")
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name, _ in named):
            raise RequestError(
                f"lr_scale names '{prefix}'", "No trainable parameter begins so", "Name a prefix that exists"
            )
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        scale = 1.0 if prefix is None else lr_scale[prefix]
        groups.setdefault((scale, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": params, "lr": lr * scale, "weight_decay": weight_decay if is_matrix else 0.0}
        for (scale, is_matrix), params in groups.items()
    ]
