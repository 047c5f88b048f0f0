"""Unpack a zip or tar archive from elsewhere without letting it write outside, link, or swell."""

import os
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lightbox.errors import RequestError

RATIO_FLOOR_BYTES = 16 << 20
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True)
class Caps:
    """Upper bounds: entries, bytes in all once unpacked, and unpacked bytes per packed byte (above 16 MiB unpacked)."""

    entries: int = 100_000
    total_bytes: int = 64 << 30
    ratio: float = 200.0


def safe_extract(archive: Path, dest: Path, *, caps: Caps = Caps()) -> list[Path]:
    """Unpack an archive into a folder that is new or empty; on any refusal nothing is left there.

    Every entry must be a plain file or folder whose path resolves inside `dest`; links and devices are refused, and
    so are two entries whose names differ only in case or Unicode form. Sizes are checked before and, because headers
    may lie, while unpacking. Tar members also pass `tarfile`'s own "data" filter.

    Args:
        archive: .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz, told by content.
        dest: folder to fill; its parent exists.
        caps: upper bounds.

    Returns:
        The files written, sorted.

    Raises:
        RequestError: not such an archive, broken, or against one of the rules; the entry is named.
    """
    if not archive.is_file():
        raise RequestError(f"Archive '{archive}'", "There is no such file", "Check the path")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise RequestError(f"Folder '{dest}'", "It is not empty", "Name a new folder to unpack into")
    staging = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, staging, caps)
        elif tarfile.is_tarfile(archive):
            _extract_tar(archive, staging, caps)
        else:
            raise RequestError(f"Archive '{archive}'", "It is neither zip nor tar", "Unpack it yourself and check it")
        os.replace(staging, dest)
    except _BROKEN as err:
        raise RequestError(f"Archive '{archive}'", f"It cannot be unpacked: {err}", "Fetch the archive again") from err
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sorted(path for path in dest.rglob("*") if path.is_file())


class _Ledger:
    """Checks entries one by one against the rules and the caps."""

    def __init__(self, archive: Path, caps: Caps) -> None:
        self.archive, self.caps = archive, caps
        self.packed = max(1, archive.stat().st_size)
        self.entries = self.total = 0
        self._names: set[str] = set()

    def check(self, name: str, size: int, *, is_plain: bool) -> PurePosixPath:
        """Admit one entry and return its relative path."""
        self.entries += 1
        self.total += size
        if self.entries > self.caps.entries:
            raise self._refusal(name, f"It is entry {self.entries}, and {self.caps.entries} are allowed")
        if self.total > self.caps.total_bytes:
            raise self._refusal(name, f"With it the content exceeds {self.caps.total_bytes} bytes")
        if self.total > RATIO_FLOOR_BYTES and self.total / self.packed > self.caps.ratio:
            raise self._refusal(name, f"With it the content is over {self.caps.ratio:g} times the archive's size")
        if not is_plain:
            raise self._refusal(name, "It is a link, a device or encrypted, not a plain file or folder")
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in name or any(":" in part for part in path.parts):
            raise self._refusal(name, "Its path leads outside the folder")
        folded = unicodedata.normalize("NFC", str(path)).casefold()
        if folded in self._names:
            raise self._refusal(name, "Another entry has the same name, up to case and Unicode form")
        self._names.add(folded)
        return path

    def _refusal(self, name: str, why: str) -> RequestError:
        return RequestError(f"Archive '{self.archive}', entry {name!r:.120}", why, "Do not use this archive")


def _extract_zip(archive: Path, staging: Path, caps: Caps) -> None:
    with zipfile.ZipFile(archive) as source:
        ledger = _Ledger(archive, caps)
        admitted = [
            (info, ledger.check(info.filename, info.file_size, is_plain=_is_plain(info))) for info in source.infolist()
        ]
        for info, name in admitted:
            target = _resolved(staging, name)
            if info.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open(info) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)  # zipfile reads no more than the announced size and checks the CRC


def _is_plain(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind in (0, stat.S_IFREG, stat.S_IFDIR) and not info.flag_bits & 0x1


def _extract_tar(archive: Path, staging: Path, caps: Caps) -> None:
    with tarfile.open(archive) as source:
        members = list(_admitted(source, _Ledger(archive, caps)))
        for member in members:
            _resolved(staging, PurePosixPath(member.name))
            source.extract(member, staging, filter="data")


def _admitted(source: tarfile.TarFile, ledger: _Ledger) -> Iterator[tarfile.TarInfo]:
    for member in source:
        ledger.check(member.name, member.size, is_plain=member.isreg() or member.isdir())
        yield member


def _resolved(staging: Path, name: PurePosixPath) -> Path:
    """The target path, which must resolve inside the staging folder."""
    target = (staging / name).resolve()
    if not target.is_relative_to(staging.resolve()):
        raise ValueError(f"entry {name} resolves outside the folder")
    return target
