"""Changes of zip and parquet files: members and columns that lack, lie, repeat or hold what does not decode."""

import datetime
import decimal
import io
import random
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightbox.testing.spoiled.documents import FIELD_CHANGES, ROW_CHANGES, TEXT_CHANGES
from lightbox.testing.spoiled.entries import CHANGES, Change, Damage
from lightbox.testing.spoiled.pictures import PICTURE_CHANGES

BOMB_BYTES = 1 << 26
Members = list[tuple[str, bytes]]
_NAMES = ("missing", "renamed", "folder", "pipe", "device", "file for folder")  # of what stands under a name
_INNER = [name for name in CHANGES if name not in _NAMES and "link" not in name]


def _spoil_inside(rng: random.Random, name: str, content: bytes) -> tuple[bytes, Damage] | None:
    """Content of a member or a cell, changed as a file of that name would be."""
    is_picture = Path(name).suffix != ".json"
    changes = {key: CHANGES[key] for key in _INNER} | (
        PICTURE_CHANGES if is_picture else TEXT_CHANGES | FIELD_CHANGES | ROW_CHANGES
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(name).name
        file.write_bytes(content)
        chosen = rng.choice(sorted(changes))
        damage = changes[chosen](rng, file)
        if damage is None:
            return None
        return file.read_bytes(), Damage(f"{name}, {chosen}: {damage.note}", damage.keeps_form, damage.rows)


def _write(file: Path, members: Members, **options: Any) -> None:
    packing = options.pop("compression", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(file, "w", packing) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice, as is meant here
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name) if name.endswith("/") else name, content, **options)


def _members_change(edit: Callable[[random.Random, Members], str | Damage | None]) -> Change:
    def change(rng: random.Random, file: Path) -> Damage | None:
        with zipfile.ZipFile(file) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        done = edit(rng, members)
        if done is None:
            return None
        _write(file, members)
        return done if isinstance(done, Damage) else Damage(done)

    return change


def _outside(rng: random.Random, members: Members) -> str:
    name = rng.choice(("../outside.png", "/root.png", "..\\win.png", "C:/a.png", "a/../../b.png", "a\x1b.png"))
    members.insert(rng.randrange(len(members)), (name, members[0][1]))
    return f"a member {name!a}"


def _moved_outside(rng: random.Random, members: Members) -> str:
    place = rng.randrange(len(members))
    members[place] = ("../" + members[place][0], members[place][1])
    return f"the member {members[place][0]}"


def _member_missing(rng: random.Random, members: Members) -> Damage:
    name, _ = members.pop(rng.randrange(len(members)))
    return Damage(f"without the member {name}", True)  # as of a file: a set without one of its parts is a set


def _member_twice(rng: random.Random, members: Members) -> str:
    place = rng.randrange(len(members))
    members.append((members[place][0], rng.choice((members[place][1], members[0][1], b"other"))))
    return f"the member {members[place][0]} twice"


def _member_renamed(rng: random.Random, members: Members) -> str:
    place = rng.randrange(len(members))
    name = rng.choice(
        ("\x07bell.png", "ä\udcff.png".encode("utf-8", "replace").decode(), "x" * 5000 + ".png", "a", " ")
    )
    members[place] = (name, members[place][1])
    return f"a member called {name[:20]!a}"


def _member_spoiled(rng: random.Random, members: Members) -> Damage | None:
    place = rng.randrange(len(members))
    name, content = members[place]
    done = _spoil_inside(rng, name, content)
    if done is None:
        return None
    members[place] = (name, done[0])
    return done[1]


def _folder_member(rng: random.Random, members: Members) -> str:
    place = rng.randrange(len(members))
    members[place] = (members[place][0] + "/", b"")
    return f"a folder in the place of {members[place][0]}"


def _bomb(rng: random.Random, members: Members) -> str:
    place = rng.randrange(len(members))
    members[place] = (members[place][0], bytes(BOMB_BYTES))
    return f"{members[place][0]} is {BOMB_BYTES} zeros"


def _patched(offsets: dict[str, tuple[int, str]]) -> Change:
    """A field of a member's entry in the directory at the end, which readers believe."""

    def change(rng: random.Random, file: Path) -> Damage:
        content = bytearray(file.read_bytes())
        entries = [place for place in range(len(content)) if content.startswith(b"PK\x01\x02", place)]
        name, (offset, form) = rng.choice(sorted(offsets.items()))
        most = (1 << 8 * struct.calcsize(form)) - 1
        value = rng.choice((0, 1, 12, 14, 98, most, most - 1, rng.randrange(most)))
        struct.pack_into(form, content, rng.choice(entries) + offset, value & most)
        file.write_bytes(content)
        return Damage(f"{name} is {value & most}")

    return change


def _recompressed(kind: int) -> Change:
    def change(rng: random.Random, file: Path) -> Damage:
        with zipfile.ZipFile(file) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        _write(file, members, compression=kind)
        content = bytearray(file.read_bytes())
        end = content.index(b"PK\x01\x02")
        for _ in range(6):
            content[rng.randrange(30, end)] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        return Damage(f"members packed by method {kind}, then flipped")

    return change


def _tail_flipped(rng: random.Random, file: Path) -> Damage:
    content = bytearray(file.read_bytes())
    start = content.index(b"PK\x01\x02")
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(start, len(content))] = rng.choice((0, 255, rng.randrange(256)))
    file.write_bytes(content)
    return Damage("bytes of the directory overwritten")


ZIP_CHANGES: dict[str, Change] = {
    "member outside": _members_change(_outside),
    "member moved outside": _members_change(_moved_outside),
    "member missing": _members_change(_member_missing),
    "member twice": _members_change(_member_twice),
    "member renamed": _members_change(_member_renamed),
    "member spoiled": _members_change(_member_spoiled),
    "folder as member": _members_change(_folder_member),
    "bomb": _members_change(_bomb),
    "entry": _patched(
        {
            "flags": (8, "<H"),
            "method": (10, "<H"),
            "checksum": (16, "<I"),
            "packed size": (20, "<I"),
            "size": (24, "<I"),
            "length of the name": (28, "<H"),
            "length of the extra field": (30, "<H"),
            "offset": (42, "<I"),
        }
    ),
    "lzma": _recompressed(zipfile.ZIP_LZMA),
    "bzip2": _recompressed(zipfile.ZIP_BZIP2),
    "stored": _recompressed(zipfile.ZIP_STORED),
    "directory": _tail_flipped,
}


def _table_change(edit: Callable[[random.Random, pa.Table], tuple[pa.Table, Damage] | None]) -> Change:
    def change(rng: random.Random, file: Path) -> Damage | None:
        done = edit(rng, pq.read_table(file, partitioning=None))
        if done is None:
            return None
        pq.write_table(done[0], file, row_group_size=4)
        return done[1]

    return change


def _column_missing(rng: random.Random, table: pa.Table) -> tuple[pa.Table, Damage]:
    name = rng.choice(table.column_names)
    return table.drop_columns([name]), Damage(f"without the column {name}")


def _column_extra(_: random.Random, table: pa.Table) -> tuple[pa.Table, Damage]:
    return table.append_column("more", pa.array(range(table.num_rows))), Damage("a column more")


def _column_twice(rng: random.Random, table: pa.Table) -> tuple[pa.Table, Damage]:
    name = rng.choice(table.column_names)
    values = table.column(name).to_pylist()
    doubled = pa.array(list(reversed(values)), table.column(name).type)
    return table.append_column(name, doubled), Damage(f"the column {name} twice")


def _column_renamed(rng: random.Random, table: pa.Table) -> tuple[pa.Table, Damage]:
    place = rng.randrange(table.num_columns)
    names = list(table.column_names)
    names[place] = rng.choice((names[place].upper(), names[place] + " ", ""))
    return table.rename_columns(names), Damage(f"the columns {names}")


def _kinds(size: int) -> dict[str, pa.Array]:
    text = pa.array([f"text {number}" for number in range(size)])
    return {
        "int64": pa.array(range(size), pa.int64()),
        "float": pa.array([float("nan"), *range(size - 1)], pa.float64()),
        "bool": pa.array([True] * size),
        "null": pa.nulls(size),
        "binary": pa.array([b"\xff\xfe"] * size, pa.binary()),
        "list": pa.array([["a", "b"]] * size),
        "struct": pa.array([{"bytes": "a", "path": None}] * size),
        "struct without bytes": pa.array([{"path": "a.png"}] * size),
        "bytes of null": pa.array(
            [{"bytes": None, "path": "a.png"}] * size, pa.struct({"bytes": pa.binary(), "path": pa.string()})
        ),
        "map": pa.array([[("a", 1)]] * size, pa.map_(pa.string(), pa.int64())),
        "dictionary": text.dictionary_encode(),
        "large text": text.cast(pa.large_string()),
        "decimal": pa.array([decimal.Decimal("1e30")] * size, pa.decimal256(60, 2)),
        "timestamp": pa.array([2**53] * size, pa.timestamp("ms")),
        "nanoseconds": pa.array([2**60 + 1] * size, pa.timestamp("ns", "UTC")),
        "unknown zone": pa.array([1] * size, pa.timestamp("us", "Nowhere/At all")),
        "date": pa.array([2**31 - 1] * size, pa.date32()),
        "duration": pa.array([2**62] * size, pa.duration("s")),
        "time": pa.array([datetime.time(1)] * size),
        "uint64": pa.array([2**64 - 1] * size, pa.uint64()),
    }


def _column_of_another_kind(rng: random.Random, table: pa.Table) -> tuple[pa.Table, Damage]:
    name = rng.choice(table.column_names)
    kinds = _kinds(table.num_rows)
    kind = rng.choice(sorted(kinds))
    place = table.column_names.index(name)
    # numbers are answers and ids too; texts kept in another way are texts
    is_text = name != "image" and kind in ("int64", "dictionary", "large text", "uint64")
    return table.set_column(place, name, kinds[kind]), Damage(f"the column {name} as {kind}", is_text)


def _cell_change(rng: random.Random, table: pa.Table) -> tuple[pa.Table, Damage]:
    name, row = rng.choice([name for name in table.column_names if name != "image"]), rng.randrange(table.num_rows)
    values = table.column(name).to_pylist()
    values[row] = rng.choice((None, "", "  ", "a\0b", "x" * 30_000))
    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.string())), Damage(
        f"row {row}, {name}: {str(values[row])[:8]!a}", rows=1
    )


def _picture_change(rng: random.Random, table: pa.Table) -> tuple[pa.Table, Damage] | None:
    row, values = rng.randrange(table.num_rows), table.column("image").to_pylist()
    content = values[row]["bytes"]
    done = _spoil_inside(rng, "cell.png" if content.startswith(b"\x89") else "cell.jpg", content)
    if done is None:
        return None
    values[row] = {"bytes": done[0], "path": None}
    damage = Damage(f"row {row}: {done[1].note}", done[1].keeps_form, 1)
    return table.set_column(0, "image", pa.array(values, table.column("image").type)), damage


def _no_rows(_: random.Random, table: pa.Table) -> tuple[pa.Table, Damage]:
    return table.slice(0, 0), Damage("no rows", True)


def _row_twice(rng: random.Random, table: pa.Table) -> tuple[pa.Table, Damage]:
    return pa.concat_tables([table, table.slice(rng.randrange(table.num_rows), 1)]), Damage("a row twice")


def _bad_text(rng: random.Random, table: pa.Table) -> tuple[pa.Table, Damage]:
    column = "question" if "question" in table.column_names else "annotation_json"
    values = [value.encode() for value in table.column(column).to_pylist()]
    row = rng.randrange(len(values))
    values[row] = b"\xb2" + values[row]
    data = pa.array(values, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(data), data.buffers())
    place = table.column_names.index(column)
    return table.set_column(place, column, text), Damage(f"row {row}: text that is not UTF-8", rows=1)


def _page(rng: random.Random, file: Path) -> Damage:
    """Header of a page: where Thrift says how long what follows is."""
    metadata, content = pq.read_metadata(file), bytearray(file.read_bytes())
    group = metadata.row_group(rng.randrange(metadata.num_row_groups))
    column = group.column(rng.randrange(group.num_columns))
    start = rng.choice((column.data_page_offset, column.dictionary_page_offset or column.data_page_offset))
    for _ in range(rng.randint(1, 3)):
        content[start + rng.randrange(24)] = rng.choice((0, 255, 127, rng.randrange(256)))
    file.write_bytes(content)
    return Damage(f"the head of a page of {column.path_in_schema}", None)


def _footer(rng: random.Random, file: Path) -> Damage:
    content = bytearray(file.read_bytes())
    size = struct.unpack_from("<I", content, len(content) - 8)[0]
    for _ in range(rng.randint(1, 4)):
        place = len(content) - 8 - rng.randrange(1, size + 1)
        content[place] = rng.choice((0, 255, 127, rng.randrange(256), content[place] ^ 1))
    file.write_bytes(content)
    return Damage("the footer", None)


def _magic(rng: random.Random, file: Path) -> Damage:
    content = bytearray(file.read_bytes())
    content[-4:] = rng.choice((b"PARE", b"PAR2", b"\0\0\0\0"))
    content[-8:-4] = rng.choice((content[-8:-4], b"\xff\xff\xff\x7f", b"\0\0\0\0"))
    file.write_bytes(content)
    return Damage("its end")


def _arrow(_: random.Random, file: Path) -> Damage:
    table = pq.read_table(file, partitioning=None)
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    file.write_bytes(stream.getvalue())
    return Damage("an Arrow file in its place")


PARQUET_CHANGES: dict[str, Change] = {
    "column missing": _table_change(_column_missing),
    "column extra": _table_change(_column_extra),
    "column twice": _table_change(_column_twice),
    "column renamed": _table_change(_column_renamed),
    "column of another kind": _table_change(_column_of_another_kind),
    "cell": _table_change(_cell_change),
    "picture in a cell": _table_change(_picture_change),
    "no rows": _table_change(_no_rows),
    "row twice": _table_change(_row_twice),
    "text not utf-8": _table_change(_bad_text),
    "page": _page,
    "footer": _footer,
    "magic": _magic,
    "arrow": _arrow,
}
