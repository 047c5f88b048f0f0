"""One model in shards over several processes, and whole again: FSDP2, torch's `fully_shard`.

Each decoder layer is gathered when it runs and dropped after it, so a process holds its share of weights, gradients and
moments, and one layer whole. accelerate says that shards are asked for and which layers; the sharding itself is torch's
own, since accelerate wants the optimiser at the same time and hooks the model's forward alone: a loss that takes rows
before the head calls parts of the model, so the hooks here sit around the paper's whole step.

A checkpoint holds whole tensors, so it does not matter how many processes wrote it.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _composable_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightbox.train import processes

LAYER_CLASSES = "FSDP_TRANSFORMER_CLS_TO_WRAP"
"""Where accelerate passes on its `--fsdp_transformer_layer_cls_to_wrap`: class names with commas between."""


class Shards:
    """A model whose parameters lie in shards; the model object, its parts and their names stay.

    Args:
        model: whole, the same class in every process; weights of the first process count.
        device: where the shards are to lie.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        processes.spread([*model.parameters(), *model.buffers()], device=device)
        modules = list(model.modules())
        owners = [(module, name, p) for module in modules for name, p in module._parameters.items() if p is not None]
        before = [(type(module), _entries(module)) for module in modules]
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in reversed(_layers(model)):  # children come after their parents, and are sharded before them
            fully_shard(layer, mesh=mesh)
        self._root: Any = fully_shard(_Root(model), mesh=mesh)
        fully_shard.state(self._root)._lazy_init()  # what it hooks into the modules, it hooks now
        self._owners = owners
        self._parts: dict[nn.Parameter, Any] = {p: module._parameters[name] for module, name, p in owners}
        self._added = [
            (module, kind, _entries(module) - entries) for module, (kind, entries) in zip(modules, before, strict=True)
        ]
        for parameter in self._parts:
            parameter.data = parameter.new_empty(0)  # the whole tensor goes; its object waits for `rejoin`

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Give ``function(model, *arguments)`` with every layer gathered in time; every process must call it."""
        return self._root(function, *arguments)

    def drop_whole(self) -> None:
        """Let go of what a call without backward pass keeps gathered."""
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def part_of(self, parameter: nn.Parameter) -> nn.Parameter:
        """The shard that stands for a parameter of the model as it was."""
        return self._parts[parameter]

    def rejoin(self) -> None:
        """Make the model whole and plain again in every process, with the parameter objects that it had before."""
        self.drop_whole()
        for parameter, part in self._parts.items():
            parameter.data = part.full_tensor().detach()
        for module, name, parameter in self._owners:
            module._parameters[name] = parameter
        for module, kind, added in self._added:
            module.__class__ = kind
            for table, key in added:
                del (vars(module) if table == "" else vars(module)[table])[key]
            _composable_state._module_state_mapping.pop(module, None)  # else the next training could not shard it


def is_part(tensor: Tensor) -> bool:
    """True for a shard."""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process; others than shards come back as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor that a shard is part of; every process must call it. Others come back as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather shards, one at a time, in every process, and keep them on the CPU of the first; tied names stay tied."""
    if not any(is_part(tensor) for tensor in tensors.values()):
        return dict(tensors)
    gathered: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in gathered:
            one = whole(tensor).detach()
            gathered[id(tensor)] = one.cpu() if processes.is_main() else one.new_empty(0)
    return {name: gathered[id(tensor)] for name, tensor in tensors.items()}


def as_part_of(own: Tensor, tensor: Tensor) -> Tensor:
    """Cut a whole tensor as `own` is cut, from this process's copy; a plain `own` gets it as it is."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


class _Root(nn.Module):
    """Holds a model, so that hooks around a call of any function of it are those of the outermost module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's own result."""
        return function(self.model, *arguments)


def _layers(model: nn.Module) -> list[nn.Module]:
    """Layers to gather one at a time: of the classes launched with, or those that transformers never splits."""
    named = os.environ.get(LAYER_CLASSES, "")
    classes = {name.strip() for name in named.split(",") if name.strip()}
    if not classes:
        classes = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in classes]


def _entries(module: nn.Module) -> set[tuple[str, Any]]:
    """Attributes of a module, and hooks in its tables, as (table, key); table "" stands for the attributes."""
    tables = {name: table for name, table in vars(module).items() if name.endswith(("_hooks", "_kwargs", "_called"))}
    return {("", key) for key in vars(module)} | {(name, key) for name, table in tables.items() for key in table or ()}
