"""An optimiser's state as named tensors and plain numbers, so that no pickle is needed to keep it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_BAR = "|"  # parameter names hold dots, never bars


def state_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Tensors of the optimiser's state by "<parameter name>|<slot>", for example "proj.weight|exp_avg"."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}{_BAR}{slot}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def group_numbers(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Each group's numbers (rate, decay, betas) and the names of its parameters, as values that JSON can hold."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [
        {key: list(value) if isinstance(value, tuple) else value for key, value in group.items() if key != "params"}
        | {"names": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]


def restore(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Put back what `state_tensors` and `group_numbers` gave, for an optimiser over the same groups."""
    optimizer.state.clear()
    parameters = dict(model.named_parameters())
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        assert [id(parameters[name]) for name in saved["names"]] == [id(p) for p in group["params"]]
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k != "names"})
        # AdamW counts steps on the CPU, and beside the weights only where it is fused or capturable
        count_device = None if group.get("fused") or group.get("capturable") else torch.device("cpu")
        for name in saved["names"]:
            owner = parameters[name]
            slots = {key.rpartition(_BAR)[2]: t for key, t in tensors.items() if key.rpartition(_BAR)[0] == name}
            for slot, tensor in slots.items():
                optimizer.state[owner][slot] = tensor.to((count_device if slot == "step" else None) or owner.device)
