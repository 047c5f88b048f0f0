"""A model's tensors in a safetensors file and back, with tied weights stored once.

safetensors refuses tensors that share memory, so tied names are written once, with the tie in the file's metadata.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightbox.errors import RequestError, WorkError

TIES = "tied_to"
_SHOWN = 8


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that training may change: trainable parameters under every tied name, and persistent buffers.

    `state_dict` is not asked: a quantised layer adds its scales and code tables to it, which belong to the frozen base.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        at = f"{prefix}." if prefix else ""
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        tensors |= {at + name: parameter for name, parameter in own if parameter.requires_grad}
        tensors |= {at + name: tensor for name, tensor in persistent_buffers(module).items()}
    return tensors


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers of one module itself that a checkpoint keeps, such as running statistics."""
    passing = module._non_persistent_buffers_set
    return {name: tensor for name, tensor in module.named_buffers(recurse=False) if name not in passing}


def buffers(model: nn.Module) -> list[Tensor]:
    """Persistent buffers of a whole model."""
    return [tensor for module in model.modules() for tensor in persistent_buffers(module).values()]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file; of those that are one tensor in memory, the first by order is stored.

    Raises:
        OSError: where the file cannot be written, for example on a full disk.
    """
    stored: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    seen: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            ties[name] = seen[place]
            continue
        seen[place] = name
        # contiguous() alone would keep views of one storage, which the format refuses
        is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        stored[name] = tensor.detach() if is_whole else tensor.detach().clone(memory_format=torch.contiguous_format)
    try:
        # one entry only: the library writes several in random order, and equal tensors shall give equal bytes
        save_file(stored, path, metadata={TIES: json.dumps(ties, sort_keys=True)} if ties else {"format": "pt"})
    except SafetensorError as err:
        raise OSError(f"{path.name}: {err}") from err


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file to the CPU, tied names included.

    Raises:
        WorkError: where the file is not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            ties = json.loads((file.metadata() or {}).get(TIES, "{}"))
    except (SafetensorError, OSError, ValueError) as err:
        raise WorkError(f"{path} cannot be read", str(err), "Fetch or make the file again") from err
    return tensors | {name: tensors[source] for name, source in ties.items()}


@torch.no_grad()
def load_trained_tensors(path: Path, model: nn.Module) -> None:
    """Copy a file's tensors into what `trained_tensors` gives, in place; each side must have all of the other.

    Args:
        path: a file that `write_tensors` wrote.
        model: with the same trainable parameters and buffers; nothing of it changes where they are not the same.

    Raises:
        RequestError: listing names in file, in model, missing, unexpected and of another shape.
        WorkError: as `read_tensors`.
    """
    tensors, own = read_tensors(path), trained_tensors(model)
    differences = {
        "missing": own.keys() - tensors.keys(),
        "unexpected": tensors.keys() - own.keys(),
        "of another shape": {name for name in tensors.keys() & own.keys() if tensors[name].shape != own[name].shape},
    }
    if any(differences.values()):
        names = {"in file": tensors.keys(), "in model": own.keys()} | differences
        raise RequestError(
            f"{path} does not fit {type(model).__name__}",
            "; ".join(f"{title} ({len(members)}): {_listed(members)}" for title, members in names.items()),
            "Make the model as it was when this was saved: the same parts frozen, the same adapter",
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + rest
