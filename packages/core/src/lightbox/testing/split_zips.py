"""Zip files in parts, written small: what `zip -s` makes of a large archive, in parts of a few hundred bytes."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

_LONG, _SHORT = 0xFFFFFFFF, 0xFFFF
_MARK = b"PK\x07\x08"
"""Stands before the first member of an archive in parts, so that no member begins at 0."""


def write_split_zip(
    file: Path, members: Mapping[str, bytes], *, part_bytes: int = 200, is_long: bool = False
) -> list[Path]:
    """Write `file` (`a.zip`) and the parts before it (`a.z01`, ...), of `part_bytes` each, and return them in order.

    Members are packed by deflate. `is_long` writes every size and place as 8 bytes, as an archive above 4 GiB must.
    """
    body, entries = _MARK, b""
    for name, content in members.items():
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(content) + packer.flush()
        title, start = name.encode(), len(body)
        facts = struct.pack("<HHHHHI", 45, 0, 8, 0, 33, zlib.crc32(content))  # version, flags, deflate, 1 January 1980
        sizes = struct.pack("<II", len(packed), len(content))
        body += b"PK\x03\x04" + facts + sizes + struct.pack("<HH", len(title), 0) + title + packed
        disk, offset, extra = start // part_bytes, start % part_bytes, b""
        if is_long:
            extra = struct.pack("<HHQQQI", 1, 28, len(content), len(packed), offset, disk)
            sizes, disk, offset = struct.pack("<II", _LONG, _LONG), _SHORT, _LONG
        rest = struct.pack("<HHHHHII", len(title), len(extra), 0, disk, 0, 0, offset)
        entries += b"PK\x01\x02" + struct.pack("<H", 45) + facts + sizes + rest + title + extra
    start, count = len(body), len(members)
    whole = body + entries
    end = 22 + (76 if is_long else 0)
    last = (len(whole) + end - 1) // part_bytes
    place = start // part_bytes, start % part_bytes
    if is_long:
        at = len(whole)
        whole += b"PK\x06\x06" + struct.pack("<QHHII", 44, 45, 45, last, place[0])
        whole += struct.pack("<QQQQ", count, count, len(entries), place[1])
        whole += b"PK\x06\x07" + struct.pack("<IQI", at // part_bytes, at % part_bytes, last + 1)
        whole += b"PK\x05\x06" + struct.pack("<HHHHIIH", *[_SHORT] * 4, _LONG, _LONG, 0)
    else:
        whole += b"PK\x05\x06" + struct.pack("<HHHHIIH", last, place[0], count, count, len(entries), place[1], 0)
    parts = [whole[cut : cut + part_bytes] for cut in range(0, len(whole), part_bytes)]
    paths = [file.with_suffix(f".z{number:02d}") for number in range(1, len(parts))] + [file]
    for path, part in zip(paths, parts, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(part)
    return paths
