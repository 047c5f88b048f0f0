"""Files read strictly: JSON, JSON lines, CSV, separated text. Size capped, encoding checked, failures named."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightbox.errors import RequestError
from lightbox.readers.members import is_there, member_bytes, split_member
from lightbox.readers.rows import RowError

MAX_BYTES = 1 << 30
_LFS = b"version https://git-lfs"  # a clone without git-lfs leaves these in the place of data, and they parse as text


class StrictObject(dict):
    """A JSON object that remembers keys met again. The first value is kept; `repeated` holds the later (key, value)."""

    repeated: tuple[tuple[str, object], ...] = ()


def read_bytes(path: Path) -> bytes:
    """The content of one regular file, or of one member of a zip file.

    Raises:
        RequestError: missing, not a file, unreadable, over `MAX_BYTES`, empty, or a Git LFS pointer.
    """
    source, place = f"File '{path}'", split_member(path)
    content = _file_bytes(path) if place is None else member_bytes(*place)
    if not content.strip():
        raise RequestError(source, "It is empty", "Fetch the file again")
    if content.startswith(_LFS):
        raise RequestError(
            source,
            "It is a Git LFS pointer, not the data",
            "Run 'git lfs pull' in the source repository, or download it",
        )
    return content


def read_text(path: Path) -> str:
    """The file as UTF-8 text, with or without a byte order mark."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise RequestError(f"File '{path}'", f"Byte {err.start} is not UTF-8", "Save the file as UTF-8") from err


def read_yaml(path: Path, *, most_chars: int) -> Any:
    """The content of a small YAML file, by the safe loader.

    Raises:
        RequestError: not YAML, longer than `most_chars`, or with aliases.
    """
    text = read_text(path)
    # aliases can make gigabytes of a few lines, and safe_load follows them
    if len(text) > most_chars or "*" in text and "&" in text:
        raise RequestError(f"File '{path}'", "It is too long or uses YAML aliases", "Write it out plainly")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise RequestError(f"File '{path}'", f"It is not YAML: {err}", "Correct the file") from err


def parse_json(text: str) -> object:
    """Parse one JSON value; objects become `StrictObject`.

    Raises:
        ValueError: not JSON, nested too deep, or a number with thousands of digits; the message names line and column.
    """
    try:
        return json.loads(text, object_pairs_hook=_strict_object)
    except RecursionError as err:  # thousands of brackets are no defect of ours, so no traceback
        raise ValueError("it is nested too deep") from err


def read_json(path: Path, kind: type, *, may_be_empty: bool = False) -> Any:
    """Read a JSON file whose top level must be a `list` or an object (`dict`).

    Args:
        path: the file.
        kind: `list` or `dict`.
        may_be_empty: False refuses a file without a row, as an empty file is.

    Raises:
        RequestError: naming the file and the line.
    """
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError as err:
        raise RequestError(f"File '{path}'", f"It is not JSON: {err}", "Fetch the file again, or correct it") from err
    if not isinstance(value, kind):
        expected = "a list of rows" if kind is list else "an object keyed by question id"
        raise RequestError(
            f"File '{path}' holds a JSON {type(value).__name__}",
            f"This format is {expected}",
            "Check that the file belongs to this dataset",
        )
    if not value and not may_be_empty:
        raise RequestError(f"File '{path}'", "It is JSON without a row", "Fetch the file again, or leave it out")
    return value


def read_json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (line number, value) for every line that is not blank; a bad line is yielded as its `RowError`."""
    for number, line in read_lines(path):
        if isinstance(line, RowError):
            yield number, line
            continue
        try:
            yield number, parse_json(line)
        except ValueError as err:
            yield number, RowError("row", f"is not JSON: {err}")


def read_lines(path: Path) -> Iterator[tuple[int, str | RowError]]:
    """Yield (line number, text) for every line that is not blank; one that is not UTF-8 comes as its `RowError`."""
    # bytes and not str.splitlines, which would also cut inside a text, at U+2028 or a form feed
    for number, raw in enumerate(read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield number, raw.decode("utf-8").strip("\r")
        except UnicodeDecodeError as err:
            yield number, RowError("row", f"is not UTF-8 at byte {err.start} of the line")


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | RowError]]:
    """Yield (line on which the row starts, cells by column) of a CSV file with a header.

    Columns without a name, as a header that ends in commas has them, are not read.
    A bad row is yielded as its `RowError`. Where a quote is never closed, only the line that it opens on is given up.

    Raises:
        RequestError: the header is no CSV, one of `columns` is missing, or a column stands twice.
    """
    text = read_bytes(path).decode("utf-8-sig", errors="surrogateescape")
    lines = list(io.StringIO(text, newline="\n"))  # not str.splitlines, which would also cut at U+2028
    try:
        header = next(csv.reader(lines[:1], strict=True), [])
    except csv.Error as err:
        raise RequestError(f"File '{path}'", f"Its first line is not CSV: {err}", "Fetch the file again") from err
    missing = [name for name in columns if name not in header]
    named = [name for name in header if name]
    if missing or len(set(named)) < len(named):
        why = f"The column {', '.join(missing)} is missing" if missing else "A column stands twice"
        raise RequestError(
            f"File '{path}' has the columns {', '.join(header)}", why, "Fetch the file named in the card"
        )
    start = 1
    while start < len(lines):
        rows = csv.reader((lines[place] for place in range(start, len(lines))), strict=True)
        read = 0
        try:
            for cells in rows:
                if cells:
                    yield start + read + 1, _checked(cells, header)
                read = rows.line_num
        except csv.Error as err:
            yield start + read + 1, RowError("row", f"is not CSV: {err}")
            read += 1
        start += read


def _file_bytes(path: Path) -> bytes:
    source = f"File '{path}'"
    if not os.path.isfile(path):  # and not Path.is_file, which raises where a name is too long
        why = ", but a folder, a pipe or a link that leads nowhere" if is_there(path) else ""
        raise RequestError(source, f"There is no such file{why}", "Check the root folder, or fetch the dataset first")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RequestError(
                f"{source} has {size} bytes",
                f"Files above {MAX_BYTES} bytes are not read at once",
                "Split the file",
            )
        return path.read_bytes()
    except OSError as err:
        raise RequestError(source, f"It cannot be opened: {err.strerror}", "Check its permissions") from err


def _checked(cells: list[str], header: list[str]) -> dict[str, str] | RowError:
    if len(cells) != len(header):
        return RowError("row", f"has {len(cells)} cells where {len(header)} belong: {', '.join(header)}")
    row = {name: cell for name, cell in zip(header, cells, strict=True) if name}
    for name, cell in row.items():
        if not cell.isascii() and any("\udc80" <= sign <= "\udcff" for sign in cell):  # bytes that decoding set aside
            return RowError(name, "is not UTF-8")
    return row


def separated(line: str | RowError, names: tuple[str, ...]) -> dict[str, str]:
    """Cut a `|` separated line into exactly the named fields.

    Raises:
        RowError: the line could not be read, or has another number of fields.
    """
    if isinstance(line, RowError):
        raise line
    cells = line.split("|")
    if len(cells) != len(names):
        raise RowError("row", f"has {len(cells)} fields separated by '|' where {len(names)} belong: {', '.join(names)}")
    return dict(zip(names, cells, strict=True))


def _strict_object(pairs: list[tuple[str, object]]) -> StrictObject:
    value, repeated = StrictObject(), []
    for key, item in pairs:
        if key in value:  # json keeps the last of two equal keys and says nothing
            repeated.append((key, item))
        else:
            value[key] = item
    value.repeated = tuple(repeated)
    return value
