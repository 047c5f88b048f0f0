"""AdamW by name: torch's own, and two of bitsandbytes whose moments take 8 bits.

The 8-bit ones keep each moment as one byte an element, with one float32 scale for each block of 256 elements; tensors
below 4,096 elements keep float32 moments. The paged one puts large moments into memory that the driver moves between
card and host, so a peak elsewhere does not end the run; it needs CUDA.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightbox.errors import RequestError

_EIGHT_BIT = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}


def make_optimizer(name: str, groups: Sequence[dict[str, Any]], *, lr: float, weight_decay: float) -> Optimizer:
    """Make an optimiser over parameter groups.

    Args:
        name: "adamw", "adamw_8bit" or "paged_adamw_8bit", as `optim.optimizer` gives it.
        groups: torch parameter groups whose tensors lie on the device they are trained on.
        lr: rate of groups that have none, > 0.
        weight_decay: decoupled decay of groups that have none, >= 0.

    Raises:
        RequestError: where the paged one is asked for and a parameter is not on a CUDA device.
    """
    if name == "adamw":
        # fused: one call for all tensors, which decides the time of small models
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    if name.startswith("paged") and devices != {"cuda"}:
        raise RequestError(
            f"optim.optimizer is {name} and the model trains on {', '.join(sorted(devices))}",
            "Paged moments lie in CUDA's unified memory",
            "Set optim.optimizer=adamw_8bit, or run.device=cuda on a machine with a card",
        )
    import bitsandbytes  # noqa: PLC0415  10 s that only the 8-bit choices pay

    return getattr(bitsandbytes.optim, _EIGHT_BIT[name])(groups, lr=lr, weight_decay=weight_decay)


def restore_slots(optimizer: Optimizer, parameter: nn.Parameter, slots: dict[str, Tensor | int | float]) -> None:
    """Put saved state of one parameter back into an 8-bit optimiser, in place.

    The optimiser allocates the slots itself, so that paged ones are paged again and all share one table of code values.

    Args:
        optimizer: one of the 8-bit ones, which `has_own_slots` tells.
        parameter: one of its parameters.
        slots: tensors and numbers by slot name, as its `state` held them.
    """
    plain = _unwrapped(optimizer)
    for group_index, group in enumerate(plain.param_groups):
        for index, candidate in enumerate(group["params"]):
            if candidate is parameter:  # by its own method, which alone knows where paged memory comes from
                plain.init_state(group, parameter, group_index, index)
    state = plain.state[parameter]
    for slot, value in slots.items():
        if isinstance(value, Tensor):
            state[slot].copy_(value)
        else:
            state[slot] = value


def has_own_slots(optimizer: Optimizer) -> bool:
    """True for optimisers of bitsandbytes, whose state has other types and shapes than the parameters."""
    return hasattr(_unwrapped(optimizer), "init_state")


def _unwrapped(optimizer: Any) -> Any:
    """The optimiser inside the wrapper that serves the loss scale of fp16."""
    return getattr(optimizer, "optimizer", optimizer)
