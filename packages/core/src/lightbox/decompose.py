"""Classes taken apart into attributes, from the attribute tables or from a language model, as a table that says which.

A source is anything that gives a `Look` for a class name. Its looks pass the rules of `knowledge.read_findings` one by
one, so that a faulty one is named and the others are kept.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from lightbox import knowledge
from lightbox.chat import ChatModel, ask
from lightbox.errors import RequestError, WorkError
from lightbox.files import to_plain
from lightbox.knowledge import Look
from lightbox.readers.documents import parse_json

FIELDS = (*knowledge.ATTRIBUTES, "appearance")
EXAMPLE = {
    "shape": "five-pointed outline",
    "density": "pale yellow on black",
    "location": "top edge of the picture",
    "appearance": "A small pale outline with five points near the upper border.",
}
"""Of the form alone; an answer that repeats a part of it is refused."""
PROMPT = f"""You describe what is seen, for people who were never told the names of things. Say how the class below
looks in a medical image: its shape, its density (how bright or dark, in which colour), its location, and in one plain
sentence its appearance. Use neither the name of the class nor a part of it. Answer with one JSON object and nothing
else. For another class it has this form:
{json.dumps(EXAMPLE)}"""


@dataclass(frozen=True)
class Source:
    """Where looks come from.

    Args:
        works: what `sources` of its looks name -> what that is.
        look_of: the look of a class; raises WorkError where it has none for this class.
    """

    works: Mapping[str, str]
    look_of: Callable[[str], Look]


def from_tables(root: Path | None = None) -> Source:
    """The attribute tables of a folder, None for the repository's; a look names the table it is from.

    Raises:
        RequestError: the first fault of a table.
    """
    looks: dict[str, Look] = {}
    works: dict[str, str] = {}
    for path in knowledge.tables(root or knowledge.folder()):
        works[path.stem] = f"The attribute table {path.name}, which names a work for each field"
        for name, look in knowledge.findings(path).looks.items():
            looks[name] = dataclasses.replace(look, sources=dict.fromkeys(FIELDS, path.stem))
    table = knowledge.FindingTable(looks, {})

    def look_of(name: str) -> Look:
        look = table.look_of(name)
        if look is None:
            raise WorkError("The attribute tables were asked", "None has that class", "Write a row, or ask a model")
        return look

    return Source(works, look_of)


def from_model(chat: ChatModel, *, cache: Path, datasets: Collection[str] = ()) -> Source:
    """A language model, see `chat.ask`. Every look names it as its only work: none passes for a looked-up one."""
    work = f"written by {chat.model}"
    about = f"Language model {chat.model} at {chat.url}, temperature {chat.temperature:g}, seed {chat.seed}"

    def look_of(name: str) -> Look:
        messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": f"Class: {name}"}]
        return _parsed(name, ask(chat, messages, datasets=datasets, cache=cache), chat.model, work)

    return Source({work: f"{about}; nothing was looked up, nobody has checked it"}, look_of)


def decompose(classes: Iterable[str], source: Source, *, covers: str) -> tuple[dict[str, Any], list[WorkError]]:
    """A table of findings for `classes`, plain, and what is wrong with the classes that are not in it.

    Args:
        classes: class names; one met again in another case is taken once.
        source: whom to ask.
        covers: name of the data set under which the table lists its classes.

    Raises:
        RequestError: what concerns every class, such as a key that is refused or an attribute table that is faulty.
    """
    rows: list[dict[str, Any]] = []
    errors: list[WorkError] = []
    for name in {name.lower(): name for name in classes}.values():
        try:
            row = to_plain(dataclasses.replace(source.look_of(name), name=name))
            _check([*rows, row], source.works)
        except WorkError as err:
            errors.append(WorkError(f"Class '{name}': {err.given}", err.why, err.do))
            continue
        rows.append(row)
    return _table(rows, source.works, covers), errors


def to_yaml(table: Mapping[str, Any]) -> str:
    """The text of a table's file."""
    return yaml.safe_dump(dict(table), allow_unicode=True, sort_keys=False, width=120)


def _parsed(name: str, answer: str, model: str, work: str) -> Look:
    try:
        fields = parse_json(answer[answer.find("{") : answer.rfind("}") + 1])  # some wrap it in words or in a fence
        if not isinstance(fields, dict) or set(fields) != set(FIELDS):
            raise ValueError(f"it needs the fields {', '.join(FIELDS)} and no other")
        if any(fields[field] == text for field, text in EXAMPLE.items()):
            raise ValueError("it repeats the example of the question")
        row = {"name": name, **fields, "sources": dict.fromkeys(FIELDS, work)}
        return TypeAdapter(Look).validate_python(row)
    except ValueError as err:
        why = str(err)
        if isinstance(err, ValidationError):
            why = f"{'.'.join(map(str, err.errors()[0]['loc']))}: {err.errors()[0]['msg']}"
        given = f"Model '{model}' answered {answer!r:.200}"
        raise WorkError(given, f"That is no description: {why}", "Ask another model, or write the row") from err


def _check(rows: list[dict[str, Any]], works: Mapping[str, str]) -> None:
    """Raise what is wrong with the last row, beside earlier ones that are sound."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "table.yaml"
        path.write_text(to_yaml(_table(rows, works, "classes")), encoding="utf-8")
        try:
            _, faults = knowledge.read_findings(path)
        except RequestError as err:
            faults = [err]
    if faults:
        row = rows[-1]
        said, by = {field: row[field] for field in FIELDS}, ", ".join(dict.fromkeys(row["sources"].values()))
        raise WorkError(f"{said!r:.300}, {by}", faults[-1].why, "Ask another model, or write the row")


def _table(rows: list[dict[str, Any]], works: Mapping[str, str], covers: str) -> dict[str, Any]:
    cited = {work for row in rows for work in row["sources"].values()}
    return {
        "about": "Made by `lightbox knowledge decompose`; `works` says from what",
        "works": {work: text for work, text in works.items() if work in cited},
        "covers": {covers: [row["name"] for row in rows]},
        "classes": rows,
    }
