"""Dataset cards: task, licence, how to get it, files, whether patients are known. YAML, safely read."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from lightbox.errors import RequestError
from lightbox.paths import shared_data
from lightbox.readers.documents import read_yaml

NOT_RECORDED = "not recorded"
MAX_CARD_CHARS = 20_000
PUBLIC_LICENCES = ("CC0-1.0", "CC-BY-4.0", "MIT", "Apache-2.0")
"""Licences under which texts of a dataset may be shown."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class DatasetFile:
    """One file or pattern of a dataset; `sha256` is a digest in hex or "not recorded"."""

    path: str
    holds: str
    sha256: str = NOT_RECORDED


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class DatasetCard:
    """One dataset.

    `patient_split` says whether patients are known, so that a split by patient is possible. `external_api` says
    whether items may be sent to a service outside this machine.
    """

    name: str
    title: str
    task: str
    modality: str
    licence: str
    terms: str
    citation: str
    how_to_get: str
    files: tuple[DatasetFile, ...]
    patient_split: Literal["known", "partly known", "unknown"]
    split_note: str
    external_api: Literal["allowed", "forbidden"]


_DATASET_CARD = TypeAdapter(DatasetCard)


def dataset_cards_dir() -> Path:
    """Folder of the cards."""
    return shared_data() / "cards"


def load_dataset_card(name: str) -> DatasetCard:
    """The card called `name`.

    Raises:
        RequestError: no such card (with close matches), or a malformed one (with the field).
    """
    names = dataset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Choose one of them"
        raise RequestError(f"There is no dataset card '{name}'", f"The cards are {', '.join(names)}", hint)
    return parse_dataset_card(dataset_cards_dir() / f"{name}.yaml")


def dataset_names() -> list[str]:
    """Names of all cards, sorted."""
    return sorted(path.stem for path in dataset_cards_dir().glob("*.yaml"))


def parse_dataset_card(path: Path) -> DatasetCard:
    """Read one card file; its `name` must be the file's name.

    Raises:
        RequestError: naming the file and the field.
    """
    content = read_yaml(path, most_chars=MAX_CARD_CHARS)
    try:
        dataset = _DATASET_CARD.validate_python(content)
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestError(f"Card '{path}', field '{place}'", first["msg"], "Correct the file") from err
    if dataset.name != path.stem:  # two cards of one name would hide each other
        raise RequestError(
            f"Card '{path}' is named '{dataset.name}' inside", "Cards are found by file name", "Rename one"
        )
    return dataset
