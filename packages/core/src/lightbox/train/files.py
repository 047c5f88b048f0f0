"""Writing that survives a crash: contents and names reach the disk before anything counts on them. No torch."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lightbox.errors import WorkError

_BLOCK = 1 << 20


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a whole: a reader sees the old or the new content, never half.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
        WorkError: where the folder or the disk refuses.
    """
    staged = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        write_synced(staged, canonical_json(value) + b"\n")
        staged.replace(path)
        sync_folder(path.parent)
    except OSError as err:
        raise WorkError(
            f"{path} cannot be written", err.strerror or str(err), "Free space there or choose another folder"
        ) from err


def write_synced(path: Path, data: bytes) -> None:
    """Write bytes to a new file and wait until they are on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until what another library wrote to `path` is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename is lost in a power cut otherwise."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no whitespace, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
