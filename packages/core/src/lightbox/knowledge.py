"""What findings look like, in words: attribute tables of `shared_data/knowledge`, read and checked. No torch.

One file holds the attribute ontology of the phantom in words that the phantom itself never says. Every other YAML file
is a table of findings: those of chest radiographs, blood cells, and whatever a user puts beside them. A faulty row is
reported with file, row and field, and the rest is read.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from lightbox.errors import RequestError
from lightbox.paths import shared_data
from lightbox.phantom import ontology as phantom
from lightbox.readers.documents import read_yaml

PHANTOM = "phantom.yaml"
ATTRIBUTES = ("shape", "density", "location")
N_SYNONYMS = 3
VALUES: Mapping[str, tuple[str, ...]] = {
    "shape": phantom.SHAPES,
    "density": phantom.DENSITIES,
    "side": phantom.SIDES,
    "place": tuple(dict.fromkeys(place for _, place in phantom.PLACES)),
}
"""Values of the phantom's ontology that need synonyms; a location is a side and a place."""
PSEUDO_WORDS = tuple(f"{a}{b}{c}{d}" for a, b, c, d in product("vzjq", "aeiou", "bkmx", "aeu"))[: len(phantom.TRIPLES)]
"""A word for each triple that says nothing about it: a name that must be learnt, or explained."""
Text = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^\S[^\n]*$")]
_MAX_CHARS = 100_000


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Look:
    """How one class looks: its attributes, one plain line, and the work that states each of the four."""

    name: Text
    shape: Text
    density: Text
    location: Text
    appearance: Text
    sources: dict[str, str]

    @property
    def description(self) -> str:
        """The three attributes as one phrase, as a prompt holds it."""
        return ", ".join(getattr(self, name) for name in ATTRIBUTES)


@dataclass(frozen=True)
class FindingTable:
    """Looks by class name, and the class names of each data set that the table covers."""

    looks: Mapping[str, Look]
    covers: Mapping[str, tuple[str, ...]]

    def look_of(self, name: str) -> Look | None:
        """The look of a class as a data set writes it, in whatever case; None where there is no row."""
        return next((look for own, look in self.looks.items() if own.lower() == name.lower()), None)


@dataclass(frozen=True)
class Synonyms:
    """Kind of attribute -> value of the phantom's ontology -> its synonyms."""

    words: Mapping[str, Mapping[str, tuple[str, ...]]]

    def describe(self, triple: Sequence[str], *, draws: Sequence[int] = (0, 0, 0, 0)) -> dict[str, str]:
        """A triple of the ontology in words that the phantom never says, by attribute: shape, density, location.

        Args:
            triple: shape, density and location, see `phantom.ontology.TRIPLES`; hilum and costophrenic have no side.
            draws: >= 0, choose a synonym of shape, density, side and place.

        Raises:
            KeyError: a value that the ontology does not have.

        Example:
            >>> synonyms().describe(("disc", "dense", "right upper"))
            {'shape': 'coin', 'density': 'white', 'location': 'starboard top'}
        """
        shape, density, location = triple
        side, _, place = location.rpartition(" ")
        said = [
            self.words[kind][value][draw % N_SYNONYMS] if value else ""
            for (kind, value), draw in zip(
                (("shape", shape), ("density", density), ("side", side), ("place", place)), draws, strict=True
            )
        ]
        return {"shape": said[0], "density": said[1], "location": " ".join(said[2:]).strip()}


def findings(path: Path | None = None) -> FindingTable:
    """A table of findings; None takes all of the repository as one.

    Raises:
        RequestError: its first fault, or a class that two tables describe.
    """
    if path is not None:
        return _sound(*read_findings(path))
    table, checked = _joined(folder())
    return _sound(table, [fault for _, faults in checked.values() for fault in faults])


def tables(root: Path) -> list[Path]:
    """The tables of findings in a folder, in order.

    Raises:
        RequestError: where there is none.
    """
    paths = [path for path in sorted(root.glob("*.yaml")) if path.name != PHANTOM]
    if not paths:
        raise RequestError(f"The folder is '{root}'", "It holds no table of findings (*.yaml)", "Name another folder")
    return paths


def _joined(root: Path) -> tuple[FindingTable, dict[str, tuple[int, list[RequestError]]]]:
    """All tables of a folder as one, and by file name the number of entries and faults of each."""
    looks: dict[str, Look] = {}
    covers: dict[str, tuple[str, ...]] = {}
    checked: dict[str, tuple[int, list[RequestError]]] = {}
    for path in tables(root):
        table, faults = read_findings(path)
        for name, look in table.looks.items():
            if FindingTable(looks, {}).look_of(name):
                why = "Another table of the folder describes that class"
                faults.append(_fault(path, name, ["name"], name, why))
            looks.setdefault(name, look)
        covers |= table.covers
        checked[path.name] = len(table.looks), faults
    return FindingTable(looks, covers), checked


def synonyms(path: Path | None = None) -> Synonyms:
    """The phantom's ontology in other words; None takes the repository's.

    Raises:
        RequestError: its first fault.
    """
    return _sound(*read_synonyms(path or folder() / PHANTOM))


def folder() -> Path:
    """Where the tables lie."""
    return shared_data() / "knowledge"


def check(root: Path | None = None) -> dict[str, tuple[int, list[RequestError]]]:
    """Number of entries and faults of each table of a folder, by file name; None takes the repository's folder."""
    place = root or folder()
    _, checked = _joined(place)
    words, faults = read_synonyms(place / PHANTOM)
    return checked | {PHANTOM: (sum(len(values) for values in words.words.values()), faults)}


def read_findings(path: Path) -> tuple[FindingTable, list[RequestError]]:
    """Read a table of findings and everything that is wrong with it.

    Wrong are: a row with a missing, empty or unknown field, a name met twice, a class without a row or a row without
    a class, two classes of one description, a description that names its class, a field without a source.

    Raises:
        RequestError: the file is missing, no YAML, or has no `works`, `covers` or `classes`.
    """
    content = _read_parts(path, {"works": dict, "covers": dict, "classes": list})
    faults: list[RequestError] = []
    looks: dict[str, Look] = {}
    for number, row in enumerate(content["classes"], start=1):
        try:
            look = TypeAdapter(Look).validate_python(row)
        except ValidationError as err:
            first = err.errors()[0]
            name = row.get("name", "") if isinstance(row, dict) else ""
            faults.append(_fault(path, f"{number} {name}".strip(), first["loc"], first["input"], first["msg"]))
            continue
        if FindingTable(looks, {}).look_of(look.name):  # in another case too: no look-up would reach the second
            faults.append(_fault(path, f"{number} {look.name}", ["name"], look.name, "An earlier row has that name"))
        looks.setdefault(look.name, look)
    covers: dict[str, tuple[str, ...]] = {}
    for name, classes in content["covers"].items():
        if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
            faults.append(_fault(path, "covers", [name], classes, "It is a list of class names"))
            continue
        covers[name] = tuple(classes)
    wanted = dict.fromkeys(chain.from_iterable(covers.values()))
    table = FindingTable(looks, covers)
    for name in wanted:
        if table.look_of(name) is None:
            faults.append(_fault(path, name, ["name"], name, "A data set has that class and no row describes it"))
    named = {name.lower() for name in wanted}
    for name in looks:
        if name.lower() not in named:
            faults.append(_fault(path, name, ["name"], name, "No data set under `covers` has that class"))
    faults += chain.from_iterable(_faults_of(path, look, content["works"]) for look in looks.values())
    for field in ("description", "appearance"):
        faults += _repeated(path, field, {name: getattr(look, field) for name, look in looks.items()})
    return table, faults


def read_synonyms(path: Path) -> tuple[Synonyms, list[RequestError]]:
    """Read synonyms of the phantom's ontology and everything that is wrong with them.

    Wrong are: a value without three synonyms, a value that the ontology does not have, a synonym that is no single
    lower-case English word, that the phantom says itself, or that stands twice.

    Raises:
        RequestError: the file is missing, no YAML, or lacks a kind of attribute.
    """
    content = _read_parts(path, dict.fromkeys(VALUES, dict))
    own_words, faults = phantom_words(), []
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    homes: dict[str, str] = {}
    for kind, values in VALUES.items():
        words[kind] = {}
        for value in sorted({*values, *content[kind]}, key=str):
            said = content[kind].get(value)
            is_list = isinstance(said, list) and len(said) == N_SYNONYMS and all(isinstance(w, str) for w in said)
            if value not in values or not is_list:
                why = f"It needs {N_SYNONYMS} words" if value in values else f"The ontology has no such {kind}"
                faults.append(_fault(path, str(value), [kind], said, why))
                continue
            words[kind][value] = tuple(said)
            for word in said:
                why = "It is not one plain word" if not re.fullmatch(r"[a-z]{3,}", word) else ""
                why = why or ("The phantom says it itself" if word in own_words else "")
                why = why or (f"It stands for {homes[word]} already" if word in homes else "")
                faults += [_fault(path, value, [kind], word, why)] if why else []
                homes.setdefault(word, value)
    return Synonyms(words), faults


def phantom_words() -> frozenset[str]:
    """Every word with which the phantom names an attribute, a size or a class."""
    parts = (phantom.SHAPES, phantom.DENSITIES, phantom.LOCATIONS, phantom.SIZES, phantom.CLASS_NAMES)
    places = [phantom.place_phrase(side, place) for side, place in phantom.PLACES]
    said = [*chain.from_iterable(parts), *phantom.SHAPE_WORDS.values(), *phantom.DENSITY_WORDS.values(), *places]
    return frozenset(word for phrase in said for word in phrase.split())


def _faults_of(path: Path, look: Look, works: Mapping[str, str]) -> Iterator[RequestError]:
    """What is wrong with one look alone."""
    # "nodule/mass" is two names; of "rib fracture" the last word gives it away, the first one is a place
    parts = [part.strip() for part in re.split(r"/| or ", look.name.lower())]
    named = re.compile(r"\b(?:{})(?:s|es)?\b".format("|".join(re.escape(part.split()[-1]) for part in parts)))
    for field in (*ATTRIBUTES, "appearance"):
        text = getattr(look, field)
        if named.search(text.lower()):
            yield _fault(path, look.name, [field], text, "A description that names its class describes nothing")
        if look.sources.get(field) not in works:
            why = f"The works are {', '.join(works)}, and every field needs one"
            yield _fault(path, look.name, ["sources", field], look.sources.get(field), why)


def _repeated(path: Path, field: str, texts: Mapping[str, str]) -> Iterator[RequestError]:
    """Classes whose text another class has too, whatever case and spaces."""
    plain = {name: " ".join(text.lower().split()) for name, text in texts.items()}
    counts = Counter(plain.values())
    for name, text in plain.items():
        if counts[text] > 1:
            others = [other for other, its in plain.items() if its == text and other != name]
            yield _fault(
                path, name, [field], texts[name], f"{', '.join(others)} has the same: nothing tells them apart"
            )


def _fault(path: Path, row: str, field: Iterable[object], value: object, why: str) -> RequestError:
    place = ".".join(str(part) for part in field) or "row"
    return RequestError(f"File '{path}', row '{row}', field '{place}' is {value!r:.80}", why, "Correct the row")


def _read_parts(path: Path, parts: Mapping[str, type]) -> dict[str, Any]:
    """The mapping in a YAML file that has these parts, each of its type."""
    content = read_yaml(path, most_chars=_MAX_CHARS)
    for name, kind in parts.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise RequestError(
                f"File '{path}', field '{name}' is missing or no {'list' if kind is list else 'mapping'}",
                f"A table has {', '.join(parts)}",
                "Compare it with the table of the repository",
            )
    return content


def _sound(table: Any, faults: Sequence[RequestError]) -> Any:
    if faults:
        raise faults[0]
    return table
