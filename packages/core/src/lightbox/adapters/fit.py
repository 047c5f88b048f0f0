"""Whether a saved adapter fits a base: by its weights' digest, its storage and its tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig

from lightbox.adapters.manifest import is_merged
from lightbox.backbones.backbone import Backbone
from lightbox.errors import RequestError


def check_fit(folder: Path, record: dict[str, Any], backbone: Backbone, *, allow_quant: bool = False) -> None:
    """Refuse a base that an adapter was not trained on.

    Args:
        folder: of the adapter, for messages.
        record: its manifest.
        backbone: the base.
        allow_quant: see `artifact.load`.

    Raises:
        RequestError: another base, a merged one, another storage, or a tokenizer without the new tokens.
    """
    _check_base(folder, record, backbone)
    _check_quant(folder, record, backbone, allow_quant=allow_quant)
    _check_tokens(folder, record, backbone)


def check_rows(config: LoraConfig, new_tokens: Mapping[str, int]) -> None:
    """Raise `RequestError` unless the rows that train are those of the new tokens."""
    tables: Any = config.trainable_token_indices or {}
    rows = sorted({row for ids in tables.values() for row in ids})
    if rows != sorted(new_tokens.values()):
        raise RequestError(
            f"The new tokens have ids {sorted(new_tokens.values())}, and rows {rows} were trained",
            "Who loads the adapter must find each trained row under its token",
            "Hand in what tokens.add_tokens returned",
        )


def _check_base(folder: Path, record: dict[str, Any], backbone: Backbone) -> None:
    base = record["base"]
    if base["digest"] == backbone.digest:
        return
    place = Path(backbone.name)
    if place.is_dir() and is_merged(place):
        why = "That base is already merged with an adapter, so this one would be added to something it never saw"
    else:
        why = f"It was trained on '{base['name']}' ({_short(base['digest'])}), a {base['family']}"
    raise RequestError(
        f"The adapter '{folder}' and the base '{backbone.name}' ({_short(backbone.digest)})",
        why,
        f"Load '{base['name']}'" + (f" at revision {base['revision']}" if base["revision"] else "") + " as the base",
    )


def _check_quant(folder: Path, record: dict[str, Any], backbone: Backbone, *, allow_quant: bool) -> None:
    if record["quant"] == backbone.quant:
        return
    is_loftq = record["adapter"]["init"] == "loftq"
    if allow_quant and not is_loftq:
        return
    raise RequestError(
        f"The adapter '{folder}' was trained on a base stored as {record['quant']}, and this one is {backbone.quant}",
        "Its LoftQ start is the error of that storage" if is_loftq else "The same adapter gives other numbers on it",
        f"Load the base with adapter.quant={record['quant']}" + ("" if is_loftq else ", or give allow_quant=True"),
    )


def _check_tokens(folder: Path, record: dict[str, Any], backbone: Backbone) -> None:
    vocabulary = backbone.tokenizer.get_vocab()
    in_order = sorted(record["new_tokens"].items(), key=lambda pair: pair[1])
    wrong = [token for token, row in in_order if vocabulary.get(token) != row]
    if wrong:
        token, count = wrong[0], len(record["new_tokens"])
        row = record["new_tokens"][token]
        raise RequestError(
            f"The adapter '{folder}' was trained with {count} new tokens, such as {token!r} as {row}",
            f"The tokenizer of '{backbone.name}' has {vocabulary.get(token, 'no id')} for it",
            "Add the tokens of its manifest.json with tokens.add_tokens, by rising id, before the adapter is loaded",
        )


def _short(digest: str) -> str:
    return digest if digest.startswith("hub:") else digest[:12]
