"""How weights are updated: which of them decay, at which rate each learns, and the optimiser's state as plain tensors.

Rates are a pure function of the step, so nothing of them needs restoring; the state needs no pickle to be kept.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightbox.adapters.optimizers import has_own_slots, restore_slots
from lightbox.errors import RequestError

_BAR = "|"  # parameter names hold dots, never bars
_NUMBERS = "numbers"


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


def lr_factor(step: int, *, max_steps: int, warmup_frac: float = 0.0, schedule: str = "linear") -> float:
    """Share of the peak learning rate that the update after `step` finished steps uses.

    Warm-up rises linearly and reaches 1 with its last step; the first update already learns. The decays end above 0
    at the last update and would reach 0 at the one after it.

    Args:
        step: optimiser steps done so far, in [0, max_steps).
        max_steps: optimiser steps in all, >= 1.
        warmup_frac: share of `max_steps` with rising rate, in [0, 1).
        schedule: "linear", "cosine" or "constant", after warm-up.

    Returns:
        A factor in (0, 1] within the range of `step`.

    Raises:
        RequestError: where the schedule is unknown.

    Example:
        >>> [lr_factor(step, max_steps=4) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [lr_factor(step, max_steps=4, warmup_frac=0.5, schedule="constant") for step in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """
    # not transformers' get_scheduler: of 1,200 linear rates 509 differ in their last bit, and its warm-up begins at 0
    warmup_steps = round(warmup_frac * max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "constant":
        return 1.0
    raise RequestError(
        f"optim.schedule is '{schedule}'", "The choices are linear, cosine, constant", "Set optim.schedule to one"
    )


def state_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Tensors of the optimiser's state by "<parameter name>|<slot>", for example "proj.weight|exp_avg"."""
    return {key: value for key, value in _slots(model, optimizer).items() if isinstance(value, Tensor)}


def group_numbers(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Each group's numbers (rate, decay, betas) and the names of its parameters, as values that JSON can hold.

    Slots that are plain numbers, such as the step count of 8-bit optimisers, stand in the first group under "numbers".
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        {key: list(value) if isinstance(value, tuple) else value for key, value in group.items() if key != "params"}
        | {"names": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    numbers = {key: value for key, value in _slots(model, optimizer).items() if not isinstance(value, Tensor)}
    return [groups[0] | {_NUMBERS: numbers}, *groups[1:]] if numbers else groups


def restore(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Put back what `state_tensors` and `group_numbers` gave, for an optimiser over the same groups."""
    optimizer.state.clear()
    parameters = dict(model.named_parameters())
    slots: dict[str, dict[str, Any]] = {}
    for key, value in (tensors | groups[0].get(_NUMBERS, {})).items():
        name, _, slot = key.rpartition(_BAR)
        slots.setdefault(name, {})[slot] = value
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        assert [id(parameters[name]) for name in saved["names"]] == [id(p) for p in group["params"]]
        numbers = {key: value for key, value in saved.items() if key not in ("names", _NUMBERS)}
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in numbers.items()})
        for name in saved["names"]:
            if name not in slots:
                continue
            if has_own_slots(optimizer):
                restore_slots(optimizer, parameters[name], slots[name])
            else:
                optimizer.state[parameters[name]] = _placed(slots[name], parameters[name], group)


def _slots(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}{_BAR}{slot}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def _placed(slots: dict[str, Tensor], owner: nn.Parameter, group: dict[str, Any]) -> dict[str, Tensor]:
    """Slots of torch's AdamW beside their parameter."""
    # the count of steps is kept on the CPU, and beside the weights only where AdamW is fused or capturable
    count_device = owner.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
    return {slot: tensor.to(count_device if slot == "step" else owner.device) for slot, tensor in slots.items()}
