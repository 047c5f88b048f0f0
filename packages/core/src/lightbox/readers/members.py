"""Members of zip files, addressed as ``<file>.zip/<member>`` and read in place; nothing is ever unpacked."""

import lzma
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.rows import RowError, inside

MAX_MEMBER_BYTES = 1 << 30
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Archive:
    """An open zip file: its members by name, (name, reason) of those that are not read, names of its folders."""

    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    refused: tuple[tuple[str, str], ...]
    folders: frozenset[str]


def split_member(path: Path) -> tuple[Path, str] | None:
    """The zip file and the member of a path that leads into one; None for every other path."""
    text, ending = os.fspath(path), f".zip{os.sep}"  # as text: asked of every image, most of which lie in no zip file
    start = text.lower().find(ending)
    while start >= 0:
        file, member = text[: start + 4], text[start + 5 :]
        if os.path.isfile(file):
            return Path(file), member.replace(os.sep, "/")
        start = text.lower().find(ending, start + 1)
    return None


def is_there(path: Path) -> bool:
    """True where anything has this name: a member, a file, and also a folder, a pipe or a link that leads nowhere.

    Asked before a part of a dataset is read, so that what stands in the place of a file is refused and not passed over.
    """
    place = split_member(path)
    if place is None:
        return os.path.lexists(path)
    archive = open_archive(place[0])
    return place[1] in archive.members or place[1] in archive.folders


def check_folder(path: Path) -> Path:
    """`path`, where it is a folder or nothing.

    Raises:
        RequestError: a file, or a link that leads nowhere, stands in its place; what it held would be left out.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise RequestError(f"'{path}'", "It is the name of a folder of the dataset, and no folder", "Fetch it again")
    return path


def member_bytes(file: Path, name: str) -> bytes:
    """The content of one member.

    Raises:
        RequestError: not a zip file, no such member, over `MAX_MEMBER_BYTES`, encrypted, or damaged.
    """
    archive = open_archive(file)
    info = archive.members.get(name)
    if info is None:
        raise RequestError(f"File '{file / name}'", "The zip file has no such member", "Fetch the zip file again")
    if info.file_size > MAX_MEMBER_BYTES:
        raise RequestError(
            f"File '{file / name}' has {info.file_size} bytes",
            f"Members above {MAX_MEMBER_BYTES} bytes are not read",
            "Leave it out",
        )
    try:
        return archive.file.read(info)
    except _BROKEN as err:
        raise RequestError(
            f"File '{file / name}'", f"The member cannot be read: {err}", "Fetch the zip file again"
        ) from err


def open_archive(file: Path) -> Archive:
    """Open a zip file, or take the one that is open.

    Raises:
        RequestError: it is not there, or no zip file.
    """
    try:
        state = file.stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for
            raise OSError("it is no regular file")
        return _archive(file, state.st_mtime_ns, state.st_size, os.getpid())
    except _BROKEN as err:
        raise RequestError(
            f"File '{file}'", f"It cannot be read as a zip file: {err}", "Fetch it again; a Git LFS pointer is not it"
        ) from err


# opening reads the whole list of members, half a second for 150,000; a replaced file is opened anew, and so is one that
# a forked worker inherits, since both processes would move the one position in it
@lru_cache(maxsize=4)
def _archive(file: Path, mtime_ns: int, size: int, process: int) -> Archive:
    archive = zipfile.ZipFile(file)
    members: dict[str, zipfile.ZipInfo] = {}
    refused: list[tuple[str, str]] = []
    for info in archive.infolist():
        # and not info.is_dir, which takes a name for one sign at least; __MACOSX has macOS's own notes on every file
        if info.filename.endswith("/") or info.filename.startswith("__MACOSX/"):
            continue
        try:
            name = inside(Path(), info.filename, "member").as_posix()
        except RowError:
            refused.append((info.filename, "leads outside the zip file, so it is not read"))
            continue
        if name in members:
            refused.append((name, "stands twice in the zip file; the first is kept"))
        else:
            members[name] = info
    folders = frozenset(info.filename[:-1] for info in archive.infolist() if info.filename.endswith("/"))
    return Archive(archive, members, tuple(refused), folders)
