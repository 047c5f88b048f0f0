"""An optimiser's state as named tensors and plain numbers, so that no pickle is needed to keep it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightbox.adapters.optimizers import has_own_slots, restore_slots
from lightbox.train import sharding

_BAR = "|"  # parameter names hold dots, never bars
_NUMBERS = "numbers"


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
    """Slots of torch's AdamW beside their parameter, in shards where it lies in shards."""
    # the count of steps is kept on the CPU, and beside the weights only where AdamW is fused or capturable
    count_device = owner.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
    return {
        slot: tensor.to(count_device) if slot == "step" else sharding.as_part_of(owner, tensor.to(owner.device))
        for slot, tensor in slots.items()
    }
