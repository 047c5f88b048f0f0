"""Turn an official `.pth` into safetensors: `torch.load(weights_only=True)`, tensors only, digest recorded.

This is the only place in Lightbox that opens a pickle. Torch is imported inside, because reading a dataset needs none.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightbox.errors import RequestError

MAX_DEPTH = 8


@dataclass(frozen=True)
class Conversion:
    """What was converted; written as JSON beside the result. Paths are file names only."""

    source: str
    source_sha256: str
    source_bytes: int
    result: str
    result_sha256: str
    tensors: int
    parameters: int
    torch: str


def convert(source: Path, dest: Path) -> Conversion:
    """Convert a file that holds tensors: one tensor, or nested dicts and lists of tensors.

    Names are the keys joined by dots; places of a list are numbers; a lone tensor is called "tensor". Tensors that
    share memory are written out apart.

    Args:
        source: .pth, .pt or .bin.
        dest: .safetensors that does not exist yet; a JSON of the same name is written beside it.

    Raises:
        RequestError: anything but tensors inside (numbers, strings, classes, code), or a file that torch refuses.
    """
    if not source.is_file():
        raise RequestError(f"Source '{source}'", "There is no such file", "Check the path")
    if dest.suffix != ".safetensors" or dest.exists():
        why = "It exists already" if dest.exists() else "The result is a .safetensors file"
        raise RequestError(f"Destination '{dest}'", why, "Name a new file that ends in .safetensors")
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    named: dict[str, torch.Tensor] = {}
    for name, tensor in _named_tensors(_load(source), source):
        if name in named:
            raise RequestError(f"File '{source}' has two tensors called '{name}'", "One would be lost", "Rename one")
        named[name] = tensor.detach().clone().contiguous()
    if not named:
        raise RequestError(f"File '{source}'", "It holds no tensor", "Name the file with the weights")
    staging = dest.with_name(f".{dest.name}.{os.getpid()}")
    try:
        save_file(named, staging, metadata={"format": "pt"})
        os.replace(staging, dest)
    finally:
        staging.unlink(missing_ok=True)
    done = Conversion(
        source=source.name,
        source_sha256=sha256_of(source),
        source_bytes=source.stat().st_size,
        result=dest.name,
        result_sha256=sha256_of(dest),
        tensors=len(named),
        parameters=sum(tensor.numel() for tensor in named.values()),
        torch=torch.__version__,
    )
    dest.with_suffix(".json").write_text(json.dumps(asdict(done), indent=2) + "\n", encoding="utf-8")
    return done


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load(source: Path) -> object:
    import torch  # noqa: PLC0415

    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise RequestError(
            f"File '{source}'",
            "It holds more than tensors, or is no torch file: loading it could run code",
            "Ask its authors for safetensors, or a file with the state dict alone",
        ) from err
    except (RuntimeError, ValueError, TypeError, EOFError, KeyError, AttributeError, IndexError, OSError) as err:
        raise RequestError(
            f"File '{source}'", f"Torch cannot read it ({type(err).__name__})", "Fetch the file again"
        ) from err


def _named_tensors(value: object, source: Path, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    import torch  # noqa: PLC0415

    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized:
        yield name or "tensor", value
        return
    if isinstance(value, dict) and depth < MAX_DEPTH and all(isinstance(key, str) for key in value):
        items = value.items()
    elif isinstance(value, list | tuple) and depth < MAX_DEPTH:
        items = ((str(place), item) for place, item in enumerate(value))
    else:
        kind = type(value).__name__
        raise RequestError(
            f"File '{source}' holds a {kind} at '{name or 'the top'}'",
            "Only dense tensors, and dicts and lists of them, are converted",
            "Save the state dict alone",
        )
    for key, item in items:
        yield from _named_tensors(item, source, f"{name}.{key}" if name else key, depth + 1)
