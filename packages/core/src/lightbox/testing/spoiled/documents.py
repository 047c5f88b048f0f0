"""Changes of JSON, JSON lines, CSV and separated text: encodings, lines, types, numbers, nesting, keys."""

import copy
import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightbox.testing.spoiled.entries import Change, Damage

TEXT = (".json", ".jsonl", ".txt", ".csv", ".xml")
NAMES_AS_KEYS = ("detection.json",)
"""Files whose keys are names of what is seen: another key is another name, and none can know which is right."""
IDS = ("qid", "img_id")
"""Numbers that only tell rows apart: where no other row has it, another one serves as well."""
_MARK = "@@spoiled@@"
VALUES = {
    "null": "null",
    "400 digits": "1" * 400,
    "minus 400 digits": "-" + "9" * 400,
    "1e999": "1e999",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "true": "true",
    "list": "[]",
    "object": "{}",
    "number in lists": "[[[[1]]]]",
    "empty text": '""',
    "blank text": '"  "',
    "half a surrogate": '"\\ud800"',
    "nul in text": '"a\\u0000b"',
    "escape in text": '"a\\u001b[2Jb"',
    "long text": '"' + "x" * 30_000 + '"',
    "object with a key twice": '{"a": 1, "a": 2}',
    "list of wrong things": '[null, 1, "a", {}, [], true]',
}
DEPTHS = (60, 300, 480, 700, 900, 985, 3000, 100_000)
NAMES = (
    "../../secret.png",
    "/etc/hostname",
    "..\\up.png",
    "C:\\a.png",
    "a\u0000.png",
    ".",
    "x" * 300 + ".png",
    "x/" * 3000 + "a.png",
    "a/" + "y" * 300 + "/b.png",
    "\ud800.png",
    "\u202egnp.a",
    "none there.png",
    "images.zip/../a.png",
)


def _text_change(
    edit: Callable[[random.Random, str], bytes | str | None], *, keeps_form: bool | None = False
) -> Change:
    def change(rng: random.Random, file: Path) -> Damage | None:
        edited = edit(rng, file.read_text("utf-8"))
        if edited is None:
            return None
        file.write_bytes(edited if isinstance(edited, bytes) else edited.encode("utf-8"))
        return Damage("text", keeps_form)

    return change


def _in_a_word(rng: random.Random, text: str, put: bytes) -> bytes:
    places = [place for place, sign in enumerate(text) if sign.isalpha()] or [0]
    place = rng.choice(places)
    return text[:place].encode() + put + text[place:].encode()


def _lines_change(edit: Callable[[random.Random, list[str]], None], *, keeps_form: bool | None = None) -> Change:
    def change(rng: random.Random, text: str) -> str | None:
        lines = text.splitlines(keepends=True)
        if len(lines) < 2:
            return None
        edit(rng, lines)
        return "".join(lines)

    return _text_change(change, keeps_form=keeps_form)


def _double(rng: random.Random, lines: list[str]) -> None:
    place = rng.randrange(len(lines))
    lines.insert(rng.choice((place, len(lines))), lines[place])


def _remove(rng: random.Random, lines: list[str]) -> None:
    del lines[rng.randrange(len(lines))]


def _halve(rng: random.Random, lines: list[str]) -> None:
    place = rng.randrange(len(lines))
    lines[place] = lines[place][: len(lines[place]) // 2] + "\n"


def _join(rng: random.Random, lines: list[str]) -> None:
    place = rng.randrange(len(lines) - 1)
    lines[place] = lines[place].rstrip("\r\n")


def _swap(rng: random.Random, lines: list[str]) -> None:
    first, second = rng.sample(range(len(lines)), 2)
    lines[first], lines[second] = lines[second], lines[first]


def _split_line(rng: random.Random, lines: list[str]) -> None:
    place = rng.randrange(len(lines))
    at = rng.randrange(len(lines[place]))
    lines[place] = lines[place][:at] + "\n" + lines[place][at:]


TEXT_CHANGES: dict[str, Change] = {
    "utf-16": _text_change(lambda _, text: text.encode("utf-16")),
    "utf-16 without mark": _text_change(lambda _, text: text.encode("utf-16-le")),
    "utf-32": _text_change(lambda _, text: text.encode("utf-32")),
    "latin-1 letter": _text_change(lambda rng, text: _in_a_word(rng, text, "é".encode("latin-1"))),
    "surrogate bytes": _text_change(lambda rng, text: _in_a_word(rng, text, b"\xed\xa0\x80")),
    "nul in a word": _text_change(lambda rng, text: _in_a_word(rng, text, b"\0")),
    "line separator in a word": _text_change(
        lambda rng, text: _in_a_word(rng, text, "\u2028".encode()), keeps_form=True
    ),
    "mark in front": _text_change(lambda _, text: text.encode("utf-8-sig"), keeps_form=True),
    "mark in the middle": _text_change(lambda rng, text: _in_a_word(rng, text, b"\xef\xbb\xbf"), keeps_form=True),
    "crlf": _text_change(lambda _, text: text.replace("\r\n", "\n").replace("\n", "\r\n"), keeps_form=True),
    "cr alone": _text_change(lambda _, text: text.replace("\r\n", "\n").replace("\n", "\r"), keeps_form=None),
    "very long line": _text_change(lambda rng, text: _in_a_word(rng, text, b"x" * 200_000)),
    "line doubled": _lines_change(_double),
    "line removed": _lines_change(_remove),
    "line halved": _lines_change(_halve),
    "lines joined": _lines_change(_join),
    "lines swapped": _lines_change(_swap),
    "line split": _lines_change(_split_line),
}


def _load(file: Path) -> Any:
    text = file.read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line] if file.suffix == ".jsonl" else json.loads(text)


def _store(file: Path, value: Any, mark: str = "", marked: str = "") -> None:
    if file.suffix == ".jsonl":
        rows = value if isinstance(value, list) else [value]
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = json.dumps(value, indent=1)
    file.write_text(text.replace(json.dumps(mark), marked) if mark else text, encoding="utf-8")


def _row(rng: random.Random, value: Any) -> tuple[Any, Any]:
    """A row and its key in the container, which is a list, or an object keyed by ids."""
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    return key, value[key]


def _place(rng: random.Random, row: Any) -> tuple[Any, Any]:
    """A container inside a row, or the row itself, and a key in it."""
    holder = row
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.5:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    return holder, key


def _field_change(
    edit: Callable[[random.Random, Any, Any], tuple[str, str] | str | None],
    rows: int | None = 1,
    *,
    keeps_form: bool = False,
) -> Change:
    """`edit` gets a container and a key in it; it may put `_MARK` there and return what takes its place in the text."""

    def change(rng: random.Random, file: Path) -> Damage | None:
        value = _load(file)
        if not value:
            return None
        key, row = _row(rng, value)
        if not isinstance(row, dict | list) or not row:
            return None
        holder, name = _place(rng, row)
        done = edit(rng, holder, name)
        if done is None:
            return None
        note, marked = done if isinstance(done, tuple) else (done, "")
        _store(file, value, _MARK if marked else "", marked)
        is_name = edit is _key_renamed and file.name in NAMES_AS_KEYS
        is_id = edit is _index and name in IDS
        return Damage(f"row {key}, {name}: {note}", keeps_form or is_name or is_id, rows)

    return change


def _value(token: str, name: str) -> Change:
    def edit(_: random.Random, holder: Any, key: Any) -> tuple[str, str]:
        holder[key] = _MARK
        return name, token

    # signs for a terminal are text all the same, and no reader can know what a text should be
    return _field_change(edit, keeps_form=name == "escape in text")


def _nested(rng: random.Random, holder: Any, key: Any) -> tuple[str, str]:
    depth = rng.choice(DEPTHS)
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    holder[key] = _MARK
    return f"nested {depth} deep", opening * depth + "1" + closing * depth


def _thousands_of_digits(_: random.Random, holder: Any, key: Any) -> tuple[str, str]:
    holder[key] = _MARK
    return "5000 digits", "7" * 5000


def _key_gone(_: random.Random, holder: Any, key: Any) -> str | None:
    if not isinstance(holder, dict):
        return None
    del holder[key]
    return "gone"


def _key_renamed(rng: random.Random, holder: Any, key: Any) -> str | None:
    if not isinstance(holder, dict):
        return None
    renamed = rng.choice((f"{key}x", key[:-1], key.upper() if key != key.upper() else f" {key}", f"{key} ", "\ud800"))
    holder[renamed] = holder.pop(key)
    return f"is called {renamed!a}"


def _key_twice(rng: random.Random, holder: Any, key: Any) -> tuple[str, str] | None:
    if not isinstance(holder, dict):
        return None
    value = json.dumps(holder[key])
    other = rng.choice(("null", value, '"other"', "3"))
    holder[key] = _MARK
    return "stands twice", f"{value}, {json.dumps(key)}: {other}"


def _index(rng: random.Random, holder: Any, key: Any) -> tuple[str, str] | None:
    if not isinstance(holder, dict) or not isinstance(holder[key], int):  # numbers in a list are pixels of a box
        return None
    token = rng.choice(("-1", "99", "0.0", '"0"', "1" * 30, "1" * 400))
    holder[key] = _MARK
    return f"index {token[:40]}", token


def _name(rng: random.Random, holder: Any, key: Any) -> tuple[str, str] | None:
    if not isinstance(holder[key], str) or not holder[key].lower().endswith((".jpg", ".png", ".dcm")):
        return None
    name = rng.choice(NAMES)
    holder[key] = _MARK
    return f"image {name[:30]!a}", json.dumps(name)


FIELD_CHANGES: dict[str, Change] = {f"value {name}": _value(token, name) for name, token in VALUES.items()} | {
    "nested": _field_change(_nested, None),
    "5000 digits": _field_change(_thousands_of_digits, None),
    "key gone": _field_change(_key_gone),
    "key renamed": _field_change(_key_renamed),
    "key twice": _field_change(_key_twice),
    "index": _field_change(_index),
    "image name": _field_change(_name),
}


def _rows_change(
    edit: Callable[[random.Random, Any, Any], Any], *, keeps_form: bool = False, rows: int | None = 1
) -> Change:
    def change(rng: random.Random, file: Path) -> Damage | None:
        value = _load(file)
        if not value:
            return None
        key, _ = _row(rng, value)
        edited = edit(rng, value, key)
        if edited is None:
            return None
        _store(file, edited)
        return Damage(f"row {key}", keeps_form, rows)

    return change


def _row_doubled(rng: random.Random, value: Any, key: Any) -> Any:
    if isinstance(value, dict):
        return None
    value.insert(rng.choice((key, len(value))), copy.deepcopy(value[key]))
    return value


def _in_another_part(rng: random.Random, file: Path) -> Damage | None:
    """A row of this file in another file of the set too, as where a set was divided anew."""
    others = [other for other in sorted(file.parent.rglob(f"*{file.suffix}")) if other != file and other.is_file()]
    if not others:
        return None
    other = rng.choice(others)
    if file.suffix in (".txt", ".csv"):
        lines = [line for line in file.read_bytes().splitlines(keepends=True)[1:] if line.strip()]
        if not lines:
            return None
        other.write_bytes(other.read_bytes() + rng.choice(lines))
        return Damage(f"a line of it in {other.name} too")
    value, more = _load(file), _load(other)
    if not value or type(value) is not type(more):
        return None
    key, row = _row(rng, value)
    if isinstance(more, dict):
        more[f"{key} again"] = row
    else:
        more.append(row)
    _store(other, more)
    return Damage(f"row {key} in {other.name} too")


def _row_replaced(rng: random.Random, value: Any, key: Any) -> Any:
    value[key] = rng.choice((None, 7, "text", [], {}, [value[key]], {"row": value[key]}, True))
    return value


def _row_removed(_: random.Random, value: Any, key: Any) -> Any:
    del value[key]
    return value


def _wrapped(rng: random.Random, value: Any, _: Any) -> Any:
    other = list(value.values()) if isinstance(value, dict) else {str(n): row for n, row in enumerate(value)}
    return rng.choice(([value], {"data": value}, {"train": value}, other, "text", 3.5, None, []))


ROW_CHANGES: dict[str, Change] = {
    "row doubled": _rows_change(_row_doubled),
    "row in another part": _in_another_part,
    "row replaced": _rows_change(_row_replaced),
    "row removed": _rows_change(_row_removed, keeps_form=True),
    "wrapped": _rows_change(_wrapped, rows=None),
    "trailing comma": _text_change(lambda _, text: text.rstrip()[:-1] + ",\n" + text.rstrip()[-1]),
    "single quotes": _text_change(lambda _, text: text.replace('"', "'")),
    "comment": _text_change(lambda _, text: "// rows\n" + text),
    "two values": _text_change(lambda _, text: text + text),
}


def _cells_change(edit: Callable[[random.Random, list[list[str]]], str | None], rows: int | None = 1) -> Change:
    def change(rng: random.Random, file: Path) -> Damage | None:
        cells = list(csv.reader(io.StringIO(file.read_text("utf-8"), newline="")))
        note = edit(rng, cells)
        if note is None:
            return None
        stream = io.StringIO(newline="")
        csv.writer(stream).writerows(cells)
        file.write_text(stream.getvalue(), encoding="utf-8", newline="")
        return Damage(note, rows=rows)

    return change


def _cell(rng: random.Random, cells: list[list[str]]) -> tuple[int, int]:
    line = rng.randrange(1, len(cells))
    return line, rng.randrange(len(cells[line]))


def _cell_dropped(rng: random.Random, cells: list[list[str]]) -> str:
    line, place = _cell(rng, cells)
    del cells[line][place]
    return f"line {line + 1} lacks a cell"


def _cell_added(rng: random.Random, cells: list[list[str]]) -> str:
    line, place = _cell(rng, cells)
    cells[line].insert(place, "more")
    return f"line {line + 1} has a cell more"


def _cell_emptied(rng: random.Random, cells: list[list[str]]) -> str:
    line, place = _cell(rng, cells)
    cells[line][place] = rng.choice(("", " "))
    return f"line {line + 1}, {cells[0][place]}: empty"


def _cell_long(rng: random.Random, cells: list[list[str]]) -> str:
    line, place = _cell(rng, cells)
    cells[line][place] = "x" * 200_000
    return f"line {line + 1}, {cells[0][place]}: 200,000 letters"


def _label(rng: random.Random, cells: list[list[str]]) -> str | None:
    line = rng.randrange(1, len(cells))
    column = "Answer_label" if "Answer_label" in cells[0] else "Answer"
    if column not in cells[0]:
        return None
    cells[line][cells[0].index(column)] = rng.choice(("E", "AB", "", "1", "Ä", "?"))
    return f"line {line + 1}, {column}: outside the choices"


def _figure(rng: random.Random, cells: list[list[str]]) -> str | None:
    line = rng.randrange(1, len(cells))
    if "Figure_path" not in cells[0]:
        return None
    cells[line][cells[0].index("Figure_path")] = rng.choice([name for name in NAMES if "\ud800" not in name])
    return f"line {line + 1}: another figure"


def _column_gone(rng: random.Random, cells: list[list[str]]) -> str:
    place = rng.randrange(len(cells[0]))
    name = cells[0][place]
    for row in cells:
        del row[place]
    return f"without column {name}"


def _column_twice(rng: random.Random, cells: list[list[str]]) -> str:
    place = rng.randrange(len(cells[0]))
    for row in cells:
        row.append(row[place])
    return f"column {cells[0][place]} twice"


def _column_renamed(rng: random.Random, cells: list[list[str]]) -> str:
    place = rng.randrange(len(cells[0]))
    cells[0][place] += "x"
    return f"column {cells[0][place]}"


def _quote(rng: random.Random, text: str) -> str:
    place = rng.choice([place for place, sign in enumerate(text) if sign in ",\n"])
    return text[: place + 1] + '"' + text[place + 1 :]


CSV_CHANGES: dict[str, Change] = {
    "cell dropped": _cells_change(_cell_dropped),
    "cell added": _cells_change(_cell_added),
    "cell emptied": _cells_change(_cell_emptied),
    "cell long": _cells_change(_cell_long),
    "label": _cells_change(_label),
    "figure": _cells_change(_figure),
    "column gone": _cells_change(_column_gone, None),
    "column twice": _cells_change(_column_twice, None),
    "column renamed": _cells_change(_column_renamed, None),
    "quote opened": _text_change(_quote),
    "quote in a word": _text_change(lambda rng, text: _in_a_word(rng, text, b'"'), keeps_form=True),
    "semicolons": _text_change(lambda _, text: text.replace(",", ";")),
}
