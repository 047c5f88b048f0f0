"""Vision features of images: from a frozen tower, computed once and kept on disk, or from a ready file.

A cache file holds the features of one set of images under one tower; its name is the digest of both and of the code,
libraries, switches and threads that computed it, so jobs of all arms that see the same images share it, and an edit
leaves it behind. It appears by one rename: another process sees a whole file or none. It carries a checksum of its name
and content; one that does not match is computed anew.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightbox.backbones import towers, weights
from lightbox.errors import RequestError
from lightbox.files import digest, replace_with
from lightbox.paper.conditions import Pictures, picture
from lightbox.paper.samples import Split
from lightbox.paper.schema import NAME_MAP, ModelConfig
from lightbox.readers.images import MAX_SIDE_PX
from lightbox.runs.key import computing_versions, switches
from lightbox.runs.sources import core_digest

CHECKSUM = "sha256"

_log = logging.getLogger(__name__)


def load_features(model: ModelConfig, split: Split[Any], *, cache: Path) -> Float[Tensor, "n p c"]:
    """Features of a split's images, one row each, and a last row for the blank image.

    The blank image is mid-grey through the tower; for ready features it is the mean over the split's images.

    Args:
        model: tower or feature file.
        split: images.
        cache: folder of cache files, made where absent.

    Raises:
        RequestError: a tower or file that does not load, or an image that the file lacks.
    """
    if model.features:
        rows = read_features(Path(model.features), split)
        return torch.cat([rows, rows.mean(dim=0, keepdim=True)])
    tower_digest = weights.digest_of(model.tower, revision=model.tower_revision, key="model.tower")
    libraries = computing_versions(("torch", "transformers", "numpy", "PIL"))
    made_by = core_digest(__name__), libraries, switches(), torch.get_num_threads()
    path = cache / f"features-{digest([split.digest(), tower_digest, made_by])[:24]}.safetensors"
    rows = _cached(path) if path.is_file() else None
    if rows is None:
        rows = _encode(split, towers.load_tower(model.tower, model.tower_revision)).contiguous()
        cache.mkdir(parents=True, exist_ok=True)
        metadata = {CHECKSUM: _checksum(path, rows)}
        replace_with(path, lambda staged: save_file({"features": rows}, staged, metadata))
    return rows


def features_of(model: ModelConfig, image: Path) -> Float[Tensor, "1 p c"]:
    """Features of one image file by the tower."""
    return towers.load_tower(model.tower, model.tower_revision).encode([picture(image, MAX_SIDE_PX)]).clone()


def read_features(path: Path, split: Split[Any]) -> Float[Tensor, "n p c"]:
    """Features of a split's images from a .safetensors with one tensor n p c, for example DETR's 100 x 256.

    Rows are named by `name_map.json` beside the file: an object from image name to row. The name is the case id or the
    stem of the image file.

    Raises:
        RequestError: another content, no name map, or images without a row.
    """
    named = f"model.features is '{path}'"
    name_map = path.with_name(NAME_MAP)
    if path.suffix != ".safetensors" or not path.is_file() or not name_map.is_file():
        raise RequestError(
            named,
            f"Ready features are a .safetensors file with {NAME_MAP} (image name to row) beside it",
            "Convert the official .pth with 'lightbox data convert' and put its name map beside the result",
        )
    tensors = load_file(path)
    if len(tensors) != 1 or next(iter(tensors.values())).ndim != 3:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise RequestError(
            named, f"It holds {shapes}, not one tensor of images x tokens x width", "Store only that one"
        )
    table = next(iter(tensors.values())).float()
    row_of = {str(name): int(row) for name, row in json.loads(name_map.read_text(encoding="utf-8")).items()}
    names = [(case_id, *_stem(image)) for case_id, image in zip(split.case_ids, split.images, strict=True)]
    rows = [next((row_of[name] for name in options if name in row_of), -1) for options in names]
    missing = [options[0] for options, row in zip(names, rows, strict=True) if not 0 <= row < len(table)]
    if missing:
        raise RequestError(
            named,
            f"{len(missing)} of {len(names)} images of split '{split.name}' have no row, the first is '{missing[0]}'; "
            "leaving them out would change the test set",
            "Compute features for all images",
        )
    return table[rows]


def _cached(path: Path) -> Tensor | None:
    """Features of a cache file; None, with a warning, where they are not what was written under that name."""
    try:
        with safe_open(path, framework="pt") as file:
            rows, checksum = file.get_tensor("features"), (file.metadata() or {}).get(CHECKSUM)
        fault = "" if checksum == _checksum(path, rows) else "its content does not match its checksum"
    except (SafetensorError, OSError) as err:
        fault = f"it cannot be read, {err}"
    if not fault:
        return rows
    _log.warning("%s is computed anew: %s", path, fault)
    return None


def _checksum(path: Path, rows: Tensor) -> str:
    """SHA-256 of the file's name, which says of what the features are, and of their shape, type and bytes."""
    content = hashlib.sha256(f"{path.name} {tuple(rows.shape)} {rows.dtype} ".encode())
    content.update(rows.view(torch.uint8).numpy())
    return content.hexdigest()


def _stem(image: np.ndarray | Path) -> tuple[str, ...]:
    return (image.stem,) if isinstance(image, Path) else ()


def _encode(split: Split[Any], tower: towers.Tower) -> Tensor:
    """Features of the images, each decoded when its turn comes, and, last, of the blank one."""
    pictures = Pictures(split, range(len(split.images) + 1), image_px=MAX_SIDE_PX)
    return torch.cat([tower.encode(pictures[:-1]), tower.encode(pictures[-1:])]).clone()
