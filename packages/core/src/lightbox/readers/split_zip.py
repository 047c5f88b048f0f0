"""Members of a zip file in parts (`a.z01`, `a.z02`, ..., `a.zip`), read where the parts lie; nothing is joined.

SA-Med2D-20M comes so, in eleven parts. Joining and unpacking them needs the disk three times over, and users report
that it fails. Here the parts are one long file to read from, and a member costs the two reads that find it.

The list of members of such an archive does not fit in memory as Python objects. An `Archive` keeps 16 bytes a member:
a digest of its name, and where its entry stands in that list. Format: APPNOTE.TXT 6.3.9 of PKWARE, sections 4.3 and 8.
"""

import bisect
import itertools
import os
import struct
import weakref
import zlib
from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightbox.errors import RequestError
from lightbox.readers.members import MAX_MEMBER_BYTES, split_member
from lightbox.readers.rows import RowError, inside

LARGE_BYTES = 1 << 32
"""A zip file above this size is read here too: the standard library holds its whole list of members in memory."""
_END, _END64, _PLACE64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_ENTRY_FORM = struct.Struct("<4s4xHH4xIIIHHHH6xI")
_LOCAL_FORM = struct.Struct("<4s22xHH")
_LENGTHS = struct.Struct("<HHH")
_LONG, _SHORT = 0xFFFFFFFF, 0xFFFF  # a number that does not fit stands in the extra field, kind 1
_CHUNK = 1 << 20
_STORED, _DEFLATED = 0, 8


class Entry(NamedTuple):
    """One line of the list of members: sizes in bytes, `start` of its local header in the joined file."""

    name: bytes
    is_encrypted: bool
    method: int
    crc: int
    packed: int
    size: int
    start: int


def is_read_here(file: Path) -> bool:
    """True for a zip file in parts, whether all of them are there or not, and for one above `LARGE_BYTES`."""
    if file.suffix.lower() != ".zip":
        return False
    return file.with_suffix(".z01").is_file() or (file.is_file() and file.stat().st_size > LARGE_BYTES)


def member_place(path: Path) -> tuple[Path, str] | None:
    """The zip file and the member of a path that leads into an archive of this kind; None for every other path."""
    place = split_member(path)
    return place if place is not None and is_read_here(place[0]) else None


class Archive:
    """The parts of one zip file as one.

    Args:
        file: the last part, `a.zip`, which holds the list of members.

    Raises:
        RequestError: a part is missing or empty, or the list cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.parts = _parts_of(file)
        self._files = [os.open(part, os.O_RDONLY) for part in self.parts]
        weakref.finalize(self, _close, self._files)
        self._ends = list(itertools.accumulate(part.stat().st_size for part in self.parts))
        self.entries, self._list_start, list_bytes = self._find_list()
        digests, places = array("q"), array("q")
        for name, place in self._walk(self._list_start, list_bytes):
            digests.append(hash(name))
            places.append(place)
        if len(places) != self.entries:
            raise self._broken(f"Its list has {len(places)} members where {self.entries} are announced")
        order = np.argsort(np.asarray(digests), kind="stable")  # stable: of two members of one name the first is kept
        self._digests, self._places = np.asarray(digests)[order], np.asarray(places)[order]

    def __contains__(self, name: str) -> bool:
        return self._entry(name) is not None

    def names(self) -> Iterator[str]:
        """Names of all files, in the order of the list, which is read anew; those that lead outside are left out."""
        for place in np.sort(self._places):
            name = self._entry_at(int(place)).name.decode("utf-8", errors="replace")
            if not name.endswith("/") and _is_inside(name):
                yield name

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of one member, a piece of about a MiB at a time; its checksum is compared at the end.

        Raises:
            RequestError: no such member, encrypted, packed by a method other than deflate, or damaged.
        """
        entry = self._entry(name)
        if entry is None:
            raise RequestError(
                f"File '{self.file / name}'", "The zip file has no such member", "Compare its name with the list"
            )
        if entry.is_encrypted or entry.method not in (_STORED, _DEFLATED):
            kind = "encrypted" if entry.is_encrypted else f"packed by method {entry.method}"
            raise RequestError(f"File '{self.file / name}'", f"The member is {kind}", "Pack it again with deflate")
        mark, name_length, extra_length = _LOCAL_FORM.unpack(self._bytes(entry.start, _LOCAL_FORM.size))
        if mark != _LOCAL:
            raise self._broken(f"Member {name} does not begin where the list says")
        place, left = entry.start + _LOCAL_FORM.size + name_length + extra_length, entry.packed
        unpack = zlib.decompressobj(-15) if entry.method == _DEFLATED else None
        crc = size = 0
        while left > 0:
            packed = self._bytes(place, min(left, _CHUNK))
            place, left = place + len(packed), left - len(packed)
            try:
                piece = packed if unpack is None else unpack.decompress(packed)
            except zlib.error as err:
                raise self._broken(f"Member {name} cannot be unpacked: {err}") from err
            crc, size = zlib.crc32(piece, crc), size + len(piece)
            yield piece
        if crc != entry.crc or size != entry.size:
            raise self._broken(f"The checksum of member {name} is wrong")

    def read(self, name: str) -> bytes:
        """The whole content of one member of at most `MAX_MEMBER_BYTES`; errors as `chunks`."""
        entry = self._entry(name)
        if entry is not None and entry.size > MAX_MEMBER_BYTES:
            raise RequestError(
                f"File '{self.file / name}' has {entry.size} bytes", f"The cap is {MAX_MEMBER_BYTES}", "Leave it out"
            )
        return b"".join(self.chunks(name))

    def _entry(self, name: str) -> Entry | None:
        wanted = name.encode()
        first = int(np.searchsorted(self._digests, hash(wanted)))
        while first < len(self._digests) and self._digests[first] == hash(wanted):
            entry = self._entry_at(int(self._places[first]))
            if entry.name == wanted:  # two names may share a digest
                return entry
            first += 1
        return None

    def _entry_at(self, place: int) -> Entry:
        head = self._bytes(place, _ENTRY_FORM.size)
        rest = self._bytes(place + _ENTRY_FORM.size, sum(_ENTRY_FORM.unpack(head)[6:9]))
        return self._parsed(head + rest, 0)

    def _walk(self, start: int, length: int) -> Iterator[tuple[bytes, int]]:
        """Name of every entry of the list, and its place in the joined file; the list is read a few MiB at a time."""
        held, at, place = b"", 0, start
        while place - start < length:
            if len(held) - at < 3 * _SHORT + _ENTRY_FORM.size:  # no entry is longer than this
                held, at = held[at:], 0
                ahead = place + len(held)
                held += self._bytes(ahead, min(8 * _CHUNK, start + length - ahead))
            if held[at : at + 4] != _ENTRY or at + _ENTRY_FORM.size > len(held):
                raise self._broken("Its list of members breaks off")
            n, extra, comment = _LENGTHS.unpack_from(held, at + 28)  # no more is taken apart, of millions of entries
            yield held[at + _ENTRY_FORM.size : at + _ENTRY_FORM.size + n], place
            at, place = at + _ENTRY_FORM.size + n + extra + comment, place + _ENTRY_FORM.size + n + extra + comment

    def _parsed(self, held: bytes, at: int) -> Entry:
        try:
            mark, flags, method, crc, packed, size, n, extra, _, disk, start = _ENTRY_FORM.unpack_from(held, at)
            if mark != _ENTRY:
                raise self._broken("Its list of members breaks off")
            name = held[at + _ENTRY_FORM.size : at + _ENTRY_FORM.size + n]
            more = held[at + _ENTRY_FORM.size + n : at + _ENTRY_FORM.size + n + extra]
            size, packed, start, disk = _long_fields(more, size, packed, start, disk)
        except struct.error as err:
            raise self._broken(f"Its list of members breaks off: {err}") from err
        return Entry(name, bool(flags & 1), method, crc, packed, size, self._in_whole(disk, start))

    def _find_list(self) -> tuple[int, int, int]:
        """How many members there are, where their list starts in the joined file, and its length in bytes."""
        total = self._ends[-1]
        tail = self._bytes(max(0, total - _SHORT - 22), min(total, _SHORT + 22))
        at = tail.rfind(_END)
        if at < 0 or at + 22 > len(tail):
            raise self._broken("It has no end, where the list of members is announced")
        disk, list_disk, _, entries, length, start = struct.unpack_from("<HHHHII", tail, at + 4)
        long_at = tail.rfind(_PLACE64, 0, at)
        if long_at >= 0 and _LONG in (start, length) or long_at >= 0 and _SHORT in (entries, disk):
            end_disk, end_start, disks = struct.unpack_from("<IQI", tail, long_at + 4)
            disk = disks - 1
            self._need(disk + 1)
            record = self._bytes(self._in_whole(end_disk, end_start), 56)
            if record[:4] != _END64:
                raise self._broken("Its list of members is not where its end says")
            list_disk, _, entries, length, start = struct.unpack_from("<IQQQQ", record, 20)
        self._need(disk + 1)
        return entries, self._in_whole(list_disk, start), length

    def _need(self, count: int) -> None:
        if count == len(self.parts):
            return
        numbers = {int(part.suffix[2:]) for part in self.parts[:-1]}
        missing = sorted(set(range(1, count)) - numbers)
        names = ", ".join(f"{self.file.stem}.z{number:02d}" for number in missing[:5]) or "none"
        raise RequestError(
            f"'{self.file}' is the last of {count} parts, and {len(self.parts)} are there (missing: {names})",
            "A member may lie in any part, and places are counted from the first",
            "Put all parts of one download into one folder, alone and as they are; nothing has to be joined",
        )

    def _in_whole(self, disk: int, offset: int) -> int:
        if disk >= len(self.parts):
            raise self._broken(f"Part {disk + 1} is named, and there are {len(self.parts)}")
        return offset + (self._ends[disk - 1] if disk else 0)

    def _bytes(self, start: int, length: int) -> bytes:
        """`length` bytes of the joined file, across the ends of parts."""
        pieces: list[bytes] = []
        while length > 0:
            number = bisect.bisect_right(self._ends, start)
            if number >= len(self.parts):
                raise self._broken("It ends too early")
            part_start = self._ends[number - 1] if number else 0
            # pread keeps no position, so that threads and forked workers may share the open files
            piece = os.pread(self._files[number], min(length, self._ends[number] - start), start - part_start)
            if not piece:
                raise self._broken("It ends too early")
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return b"".join(pieces)

    def _broken(self, why: str) -> RequestError:
        return RequestError(
            f"File '{self.file}'", why, "Fetch its parts again, and compare their sizes with the source"
        )


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def open_parts(file: Path) -> Archive:
    """The archive whose last part is `file`; one that is open is taken again while none of its parts changed."""
    parts = _parts_of(file)
    try:
        return _opened(file, tuple((part.stat().st_mtime_ns, part.stat().st_size) for part in parts))
    except OSError as err:
        raise RequestError(f"File '{file}'", f"It cannot be opened: {err.strerror}", "Check its permissions") from err


@lru_cache(maxsize=2)
def _opened(file: Path, stamps: tuple[tuple[int, int], ...]) -> Archive:
    return Archive(file)


def _parts_of(file: Path) -> list[Path]:
    """`a.z01`, `a.z02`, ... by number, and `a.zip` last."""
    pattern = f"{file.stem}.[zZ][0-9]*"
    numbered = {int(part.suffix[2:]): part for part in file.parent.glob(pattern) if part.suffix[2:].isdecimal()}
    if not file.is_file():
        raise RequestError(
            f"'{file}' is not there, and {len(numbered)} numbered parts of it are",
            "The list of members stands at the end of the last part, which ends in .zip",
            "Fetch that part too, into the same folder",
        )
    return [*(part for _, part in sorted(numbered.items())), file]


def _long_fields(extra: bytes, size: int, packed: int, start: int, disk: int) -> tuple[int, int, int, int]:
    """Numbers that do not fit into an entry, from its extra field of kind 1, in the order of APPNOTE 4.5.3."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            place = at + 4
            if size == _LONG:
                (size,), place = struct.unpack_from("<Q", extra, place), place + 8
            if packed == _LONG:
                (packed,), place = struct.unpack_from("<Q", extra, place), place + 8
            if start == _LONG:
                (start,), place = struct.unpack_from("<Q", extra, place), place + 8
            if disk == _SHORT:
                (disk,) = struct.unpack_from("<I", extra, place)
            break
        at += 4 + length
    return size, packed, start, disk


def _is_inside(name: str) -> bool:
    try:
        inside(Path(), name, "member")
    except RowError:
        return False
    return True
