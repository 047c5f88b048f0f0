"""Turn an official `.pth` into safetensors: `torch.load(weights_only=True)`, tensors only, digest recorded.

This is the only place in Lightbox that opens a pickle. Torch is imported inside, because reading a dataset needs none.
"""

import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightbox.errors import RequestError
from lightbox.files import file_sha256, replace_text, replace_with

MAX_DEPTH = 8  # a list that holds itself would never end


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


class _Ignored:
    """Stands for an object of a class that is not loaded; what the file says of it is never used."""

    def __new__(cls, *args: object) -> Any:
        # torch fills only what is a plain dictionary; a file calls `defaultdict` with arguments, and makes others bare
        return {} if args else super().__new__(cls)


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
    if dest.suffix != ".safetensors" or dest.exists():
        why = "It exists already" if dest.exists() else "The result is a .safetensors file"
        raise RequestError(f"Destination '{dest}'", why, "Name a new file that ends in .safetensors")
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    named: dict[str, torch.Tensor] = {}
    for name, tensor in _named_tensors(load_pickle(source), source):
        if name in named:
            raise RequestError(f"File '{source}' has two tensors called '{name}'", "One would be lost", "Rename one")
        # safetensors refuses tensors that share memory, such as tied tables
        named[name] = tensor.detach().clone().contiguous()
    if not named:
        raise RequestError(f"File '{source}'", "It holds no tensor", "Name the file with the weights")
    replace_with(dest, lambda staged: save_file(named, staged, metadata={"format": "pt"}))
    done = Conversion(
        source=source.name,
        source_sha256=file_sha256(source),
        source_bytes=source.stat().st_size,
        result=dest.name,
        result_sha256=file_sha256(dest),
        tensors=len(named),
        parameters=sum(tensor.numel() for tensor in named.values()),
        torch=torch.__version__,
    )
    replace_text(dest.with_suffix(".json"), json.dumps(asdict(done), indent=2) + "\n")
    return done


def load_pickle(source: Path, *, ignored: Sequence[str] = ()) -> Any:
    """Read what a file of torch holds: tensors, numbers, strings, and dicts and lists of them; no code runs.

    Args:
        source: .pth, .pt or .bin.
        ignored: full names of classes of which the file may hold objects; none is made, and stand-ins are read.

    Raises:
        RequestError: anything else inside, or a file that torch refuses.
    """
    if not source.is_file():
        raise RequestError(f"Source '{source}'", "There is no such file", "Check the path")
    import torch  # noqa: PLC0415

    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in ignored]):
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
