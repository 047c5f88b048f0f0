"""Atomic writing, canonical JSON and digests, once for the whole house. No torch.

What is written here survives a crash: contents and names reach the disk before anything counts on them, and a reader
sees the old file or the new one, never half.
"""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from lightbox.errors import WorkError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = 1 << 20


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a whole.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
        WorkError: where the folder or the disk refuses.
    """
    try:
        replace_bytes(path, canonical_json(value) + b"\n")
    except OSError as err:
        raise WorkError(
            f"{path} cannot be written", err.strerror or str(err), "Free space there or choose another folder"
        ) from err


def replace_text(path: Path, text: str) -> None:
    """Replace a text file as a whole, in UTF-8; its folder is made where absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, data: bytes) -> None:
    """Replace a file as a whole.

    Raises:
        OSError: where the folder or the disk refuses; the old file is then untouched.
    """
    _replace(path, lambda staged: write_synced(staged, data))


def replace_with(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file as a whole with what another library writes.

    Args:
        path: of the file; its folder must exist.
        write: gets the path of a new file in the same folder and fills it.
    """

    def write_and_sync(staged: Path) -> None:
        write(staged)
        sync_file(staged)

    _replace(path, write_and_sync)


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


def to_plain(value: Any) -> Any:
    """Turn dataclasses, enums, paths and tuples, nested, into dictionaries, lists and scalars that JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(to_plain(key)): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, Enum):
        return to_plain(value.value)
    return str(value) if isinstance(value, Path) else value


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no whitespace, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(value: Any) -> str:
    """SHA-256, in hex, of the canonical JSON of `to_plain(value)`.

    Raises:
        ValueError: for NaN or infinity.
        TypeError: for a value that JSON cannot hold.

    Example:
        >>> digest({"b": 1, "a": (2, 3)}) == digest({"a": [2, 3], "b": 1})
        True
    """
    return hashlib.sha256(canonical_json(to_plain(value))).hexdigest()


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    # a hidden name, so that no reader that lists a folder takes a half-written file for a whole one
    staged = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        write(staged)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)
