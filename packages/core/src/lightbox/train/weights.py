"""A model's tensors in a safetensors file and back, with tied weights stored once and digests checked.

safetensors refuses tensors that share memory and has no checksum: a flipped bit loads silently. So tied names are
written once, with the tie in the file's metadata, and a digest is compared wherever one is known.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightbox.errors import RequestError, WorkError
from lightbox.files import file_sha256
from lightbox.train import sharding

MODEL = "model.safetensors"
TIES = "tied_to"
_SHOWN = 8


@dataclass(frozen=True)
class Mismatch:
    """How a weights file and a model differ: four sorted lists of names, and names whose shapes differ."""

    in_file: tuple[str, ...]
    in_model: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that training may change: trainable parameters under every tied name, and persistent buffers.

    `state_dict` is not asked: a quantised layer adds its scales and code tables to it, which belong to the frozen base.
    """
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        at = f"{prefix}." if prefix else ""
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        found |= {at + name: parameter for name, parameter in own if parameter.requires_grad}
        found |= {at + name: tensor for name, tensor in persistent_buffers(module).items()}
    return found


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


def read_tensors(path: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """Read every tensor of a safetensors file, tied names included.

    Raises:
        WorkError: where the file is not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            ties = json.loads((file.metadata() or {}).get(TIES, "{}"))
    except (SafetensorError, OSError, ValueError) as err:
        raise WorkError(f"{path} cannot be read", str(err), "Fetch or make the file again") from err
    return tensors | {name: tensors[source] for name, source in ties.items()}


def check_digest(path: Path, digest: str) -> None:
    """Compare a file's SHA-256 with the recorded one.

    Raises:
        WorkError: where they differ.
    """
    found = file_sha256(path)
    if found != digest:
        raise WorkError(
            f"{path} has SHA-256 {found[:16]}..., recorded is {digest[:16]}...",
            "The file changed after it was recorded, and safetensors would load it without a word",
            "Fetch or make the file again; do not train or judge with it",
        )


def load_model_weights(
    path: Path,
    model: nn.Module,
    *,
    allow_missing: str = "",
    allow_unexpected: str = "",
    digest: str | None = None,
) -> Mismatch:
    """Copy a file's tensors into a model, in place, and refuse what does not fit.

    Args:
        path: a safetensors file, or a checkpoint folder that holds model.safetensors.
        model: receives the values, converted to its own dtypes.
        allow_missing: regular expression, matched at the start of a name, of model tensors that the file may lack.
        allow_unexpected: the same for tensors of the file that the model lacks.
        digest: SHA-256 the file must have. None takes it from a manifest.json beside the file where there is one.

    Returns:
        What matched and what was ignored.

    Raises:
        RequestError: listing names in file, in model, missing and unexpected, where they differ beyond the patterns.
        WorkError: where the file is damaged or its digest is not the recorded one.
    """
    file = path / MODEL if path.is_dir() else path
    digest = digest or _recorded_digest(file)
    if digest is not None:
        check_digest(file, digest)
    tensors, own = read_tensors(file), model.state_dict()
    mismatch = _compare(tensors, own)
    _refuse(mismatch, file, type(model).__name__, allow_missing, allow_unexpected)
    _copy(tensors, own)
    return mismatch


def load_trained_tensors(path: Path, model: nn.Module) -> None:
    """Copy a checkpoint's tensors into what `trained_tensors` gives, in place; each side must have all of the other.

    Args:
        path: a checkpoint folder.
        model: with the same trainable parameters and buffers; it may lie in shards.

    Raises:
        RequestError, WorkError: as `load_model_weights`.
    """
    file = path / MODEL
    digest = _recorded_digest(file)
    if digest is not None:
        check_digest(file, digest)
    tensors, own = read_tensors(file), trained_tensors(model)
    _refuse(_compare(tensors, own), file, type(model).__name__, "", "")
    _copy(tensors, own)


def _place(tensor: Tensor) -> int:
    """Equal for tied tensors; a shard has no address of its own, and tied ones are one object."""
    return id(tensor) if sharding.is_part(tensor) else tensor.data_ptr()


def _compare(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mismatch:
    places = {_place(tensor) for name, tensor in own.items() if name in tensors}
    return Mismatch(
        in_file=tuple(sorted(tensors)),
        in_model=tuple(sorted(own)),
        missing=tuple(sorted(n for n, t in own.items() if n not in tensors and _place(t) not in places)),
        unexpected=tuple(sorted(tensors.keys() - own.keys())),
        reshaped=tuple(sorted(n for n in tensors.keys() & own.keys() if tensors[n].shape != own[n].shape)),
    )


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name in tensors.keys() & own.keys():
        own[name].copy_(sharding.as_part_of(own[name], tensors[name]))


def _refuse(mismatch: Mismatch, file: Path, model: str, allow_missing: str, allow_unexpected: str) -> None:
    missing = _not_matching(mismatch.missing, allow_missing)
    unexpected = _not_matching(mismatch.unexpected, allow_unexpected)
    if not missing and not unexpected and not mismatch.reshaped:
        return
    sets = {
        "in file": mismatch.in_file,
        "in model": mismatch.in_model,
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": mismatch.reshaped,
    }
    raise RequestError(
        f"{file} does not fit {model}",
        "; ".join(f"{title} ({len(names)}): {_listed(names)}" for title, names in sets.items()),
        "Use the weights of this model, or name what to ignore with allow_missing or allow_unexpected",
    )


def _not_matching(names: Iterable[str], pattern: str) -> list[str]:
    return [name for name in names if not pattern or not re.match(pattern, name)]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + rest


def _recorded_digest(file: Path) -> str | None:
    manifest = file.parent / "manifest.json"
    if not manifest.is_file():
        return None
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["files"][file.name]["sha256"]
    except (ValueError, KeyError, TypeError) as err:
        raise WorkError(f"{manifest} cannot be read", repr(err), "Use another checkpoint or make it again") from err
