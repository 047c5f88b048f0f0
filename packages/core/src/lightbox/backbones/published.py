"""Configurations of published models, as facts, and what makes each of them small: `published.json`. No torch.

`config` holds the values of the repository's config.json that differ from the defaults of transformers 5.23, plus those
that `shrink` changes. `shrink` changes width, depth, vocabulary, positions, image sizes and the ids of special tokens,
and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, with_config

Config = dict[str, Any]
WHOLE = ("rope_parameters",)
"""Values that are replaced and not merged: the parts of one kind of position mean nothing under another kind."""


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True)
class Published:
    """A published model and its small form.

    Args:
        repository: where the weights are.
        model_class: class of transformers that reads them.
        parameters: millions, as published; None where no source was found.
        config: values of config.json.
        shrink: values of the small form, nested as `config`.
        uncertain: what could not be checked against the repository itself.
        decoding: settings of generation_config.json that would change a greedy answer.
    """

    repository: str
    model_class: str
    parameters: float | None
    config: Config
    shrink: Config
    uncertain: str = ""
    decoding: Config = field(default_factory=dict)


def read_published(path: Path) -> dict[str, dict[str, Published]]:
    """Models by kind ("generators", "towers") and name.

    Raises:
        ValueError: where a field is missing, unknown or of another type, with its place in the file.
    """
    return TypeAdapter(dict[str, dict[str, Published]]).validate_json(path.read_bytes())


# read at import: names are choices of command line options
_KINDS = read_published(Path(__file__).with_suffix(".json"))
GENERATORS, TOWERS = tuple(_KINDS["generators"]), tuple(_KINDS["towers"])
PUBLISHED = {name: model for models in _KINDS.values() for name, model in models.items()}


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """A deep copy of nested values with some of them changed."""
    copy = {key: merged(value, {}) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key, value in changes.items():
        is_nested = isinstance(value, Mapping) and key not in WHOLE
        copy[key] = merged(values[key], value) if is_nested else value
    return copy


def shrunk_values(name: str) -> Config:
    """Values of the small form of a published model."""
    return merged(PUBLISHED[name].config, PUBLISHED[name].shrink)
