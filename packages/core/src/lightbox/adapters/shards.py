"""Safetensors files written tensor by tensor: one tensor is in memory at a time, however large the model.

The library's own writer takes a whole file's tensors at once. The format is a length (8 bytes, little-endian), a JSON
header with dtype, shape and place of each tensor, and the tensors' bytes without holes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Spec:
    """Dtype and shape of a tensor to come."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_shards(
    folder: Path, specs: Mapping[str, Spec], tensor_of: Callable[[str], Tensor], *, max_bytes: int
) -> list[Path]:
    """Write tensors to one file, or to several and their index, under the names that `from_pretrained` looks for.

    Args:
        folder: exists.
        specs: what each tensor will be, in order.
        tensor_of: makes a tensor by name; called once each, in order.
        max_bytes: of a file's tensors; a larger tensor has a file to itself.
    """
    groups = _groups(specs, max_bytes)
    count = len(groups)
    files = [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for file, names in zip(files, groups, strict=True):
        _write(folder / file, {name: specs[name] for name in names}, tensor_of)
    if count > 1:
        places = {name: file for file, names in zip(files, groups, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(spec.size for spec in specs.values())}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [folder / file for file in files]


def _groups(specs: Mapping[str, Spec], max_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = -1
    for name, spec in specs.items():
        if spec.size > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= spec.size
    return groups


def _write(path: Path, specs: Mapping[str, Spec], tensor_of: Callable[[str], Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        places = [end, end + spec.size]
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": places}
        end += spec.size
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, spec in specs.items():
            file.write(_bytes(tensor_of(name), name, spec))


def _bytes(tensor: Tensor, name: str, spec: Spec) -> Sequence[int]:
    assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), f"{name}: {tensor.dtype} {tensor.shape}"
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore
