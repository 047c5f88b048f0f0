"""What is costly to make and kept: folders named by the content that they were made from, in `.cache/site`."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from lightbox.files import digest, file_sha256

FOLDER = ".cache/site"
UNSEEN = ("/__pycache__/", ".egg-info/", "/lightbox/cli/", "/lightbox/site/", "/lightbox/view/")
"""Parts of paths that do not count: what is made by itself, and packages that no walkthrough and no claim reads."""


def kept_place(root: Path, name: str, parts: Iterable[str]) -> Path:
    """The folder for something made from these parts of the checkout, whether it is there or not.

    Args:
        root: the checkout.
        name: what is made, to begin the folder's name.
        parts: files and folders relative to the root, each counted with its whole content.
    """
    files = (path for part in parts for path in _files(root / part))
    seen = {str(path.relative_to(root)): _sha256(path, path.stat().st_mtime_ns) for path in files}
    return root / FOLDER / f"{name}-{digest([sys.version_info[:2], seen])[:16]}"


def store(folder: Path, place: Path) -> None:
    """Copy a folder to its place as a whole; where another process was first, its copy stays."""
    if place.is_dir():
        return
    staged = place.with_name(f".{place.name}.tmp-{os.getpid()}")
    shutil.copytree(folder, staged)
    try:
        staged.rename(place)
    except OSError:  # the place was taken meanwhile, by the same content
        shutil.rmtree(staged)
        if not place.is_dir():
            raise


def _files(part: Path) -> Iterator[Path]:
    if part.is_file():
        yield part
    for path in sorted(part.rglob("*")):
        if path.is_file() and not any(piece in path.as_posix() for piece in UNSEEN):
            yield path


@cache
def _sha256(path: Path, mtime_ns: int) -> str:
    """Of a file as it was at that time: the same files count for many places."""
    return file_sha256(path)
