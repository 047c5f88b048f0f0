"""What a folder of trained weights says about itself: what it belongs to, what is in it, and its files' digests.

`manifest.json` has a `kind`: "adapter" (to be put on a base) or "merged" (a whole model). An adapter that plain peft
saved has none; what its `adapter_config.json` does not say stays None. No torch.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightbox.backbones.preflight import ADAPTER
from lightbox.backbones.weights import digest_of_file, digest_of_weights
from lightbox.errors import RequestError, WorkError
from lightbox.files import to_plain

if TYPE_CHECKING:
    from lightbox.backbones.backbone import Backbone

MANIFEST = "manifest.json"
FORMAT = 2  # the base's digest is of its tensors; 1 had one of every file that is read with them
FORMATS = (1, FORMAT)
CARD = "README.md"
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""What a manifest calls them -> names of `model.dtype`."""
# what can change the meaning of the tensors
_PACKAGES = ("lightbox-core", "torch", "transformers", "peft", "bitsandbytes")


def _is_number(value: Any, low: float, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "base_model_name_or_path": (lambda value: value is None or isinstance(value, str), "a name, or nothing"),
    "revision": (lambda value: value is None or isinstance(value, str), "a name, or nothing"),
    "r": (lambda value: isinstance(value, int) and _is_number(value, 1), "a whole number from 1 on"),
    "lora_alpha": (lambda value: _is_number(value, 0), "a number from 0 on"),
    "lora_dropout": (lambda value: value is None or _is_number(value, 0, 1), "a share from 0 to 1"),
    "use_rslora": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "use_dora": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "target_modules": (lambda value: isinstance(value, str) or _are_names(value), "names of modules, or a pattern"),
    "modules_to_save": (_are_names, "names of modules, or nothing"),
}
"""Of peft's description of a LoRA: what each field may hold, and that in words."""


@contextmanager
def staged_folder(folder: Path, kind: str) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once it is whole; after an error nothing has changed.

    Raises:
        RequestError: where `folder` holds anything but an earlier result of the same kind.
    """
    if folder.exists() and any(folder.iterdir()):
        try:
            read_manifest(folder, kind)
        except (RequestError, WorkError) as err:
            raise RequestError(
                f"The folder '{folder}' is not empty",
                f"It does not hold {kind} weights, and writing there would delete what it holds",
                "Name a new folder",
            ) from err
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)  # of a save that was killed
    staged.mkdir(parents=True)
    try:
        yield staged
        shutil.rmtree(folder, ignore_errors=True)
        staged.replace(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def base_facts(backbone: "Backbone") -> dict[str, Any]:
    """What a manifest says about the base and how it is held."""
    return {
        "base": {
            "name": backbone.name,
            "revision": backbone.revision,
            "digest": digest_of_weights(backbone.name, revision=backbone.revision),
            "family": backbone.family.name,
        },
        "quant": backbone.quant,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "attention": to_plain(backbone.attention),
    }


def write_manifest(folder: Path, kind: str, facts: dict[str, Any]) -> None:
    """Record facts, versions, and size and SHA-256 of every other file of a folder."""
    # without itself, since it cannot hold its own digest, and without a text that people edit
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, CARD))
    record = {
        "format": FORMAT,
        "kind": kind,
        **facts,
        "versions": {name: version(name) for name in _PACKAGES},
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_of_file(path)}
            for path in files
        },
    }
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_adapter(folder: Path) -> dict[str, Any]:
    """The manifest of an adapter, or the like of one for a folder that plain peft saved.

    There `format`, `quant`, `dtype` and the base's `digest` and `family` are None: peft says nothing of them.

    Raises:
        RequestError: a folder without an adapter, or an adapter that is no LoRA.
        WorkError: a damaged description.
    """
    has_manifest = (folder / MANIFEST).exists() or (folder / MANIFEST).is_symlink()  # also one that leads nowhere
    if has_manifest or not (folder / ADAPTER).is_file():
        return read_manifest(folder, "adapter")
    plain, kind = _read(folder / ADAPTER, "peft_type")
    if kind != "LORA":
        raise RequestError(
            f"'{folder}' holds an adapter of kind {kind}", "Here LoRA is read and merged", "Load it with peft itself"
        )
    _check_fields(plain, folder / ADAPTER)
    name, revision = plain.get("base_model_name_or_path") or "unnamed", plain.get("revision") or ""
    base = {"name": name, "revision": revision, "digest": None, "family": None}
    facts = {"base": base, "adapter": settings_of(plain), "new_tokens": {}, "files": {}}
    return {"kind": "adapter", **dict.fromkeys(("format", "quant", "dtype")), **facts}


def _check_fields(plain: Mapping[str, Any], path: Path) -> None:
    """Refuse a description of a LoRA whose fields hold what peft never writes.

    Raises:
        WorkError: with the first field and its value.
    """
    for key, (is_sound, what) in _FIELDS.items():
        if not is_sound(plain.get(key)):
            value = repr(plain.get(key))
            raise WorkError(
                f"{path} has the field '{key}' with the value {value if len(value) < 80 else value[:77] + '...'}",
                f"It holds {what}",
                "Save or fetch the folder again",
            )


def settings_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `adapter.*` that peft's own description of a LoRA amounts to, names matched as peft matches them."""
    targets = plain.get("target_modules") or []
    if not isinstance(targets, str):
        targets = rf"(?:.*\.)?(?:{'|'.join(re.escape(name) for name in sorted(targets))})"
    return {
        "kind": "lora",
        "r": plain["r"],
        "alpha": float(plain["lora_alpha"]),
        "dropout_prob": plain.get("lora_dropout", 0.0),
        "use_rslora": plain.get("use_rslora", False),  # unknown to older files
        "use_dora": plain.get("use_dora", False),
        "targets": targets,
        "modules": [f".*{re.escape(name)}" for name in plain.get("modules_to_save") or ()],
    }


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Read the record of a folder of this kind, without looking at its files.

    Raises:
        RequestError: no folder, no manifest, or one of another kind or format.
        WorkError: a manifest that is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RequestError(
            f"'{folder}'",
            f"There is no {MANIFEST}, so nothing says which base these weights belong to",
            f"Name a folder that lightbox saved, or one of peft, with {ADAPTER}",
        )
    record, version_read, kind_read = _read(path, "format", "kind")
    if version_read not in FORMATS or kind_read != kind:
        raise RequestError(
            f"'{folder}' holds {kind_read} weights of format {version_read}",
            f"Here {kind} weights of format {FORMAT} are read",
            "Name another folder" if kind_read != kind else "Read it with the version that wrote it",
        )
    return record


def check_files(folder: Path, record: dict[str, Any]) -> None:
    """Compare every file with the record.

    Raises:
        WorkError: naming a file that is missing or has changed.
    """
    for name, facts in record["files"].items():
        path = folder / name
        have = digest_of_file(path) if path.is_file() else "missing"
        if have != facts["sha256"]:
            raise WorkError(
                f"{path} has SHA-256 {have[:12]}, its manifest says {facts['sha256'][:12]}",
                "The file was damaged or replaced after it was saved, and would load without a word",
                "Fetch or save the folder again; do not judge with it",
            )


def _read(path: Path, *keys: str) -> tuple[Any, ...]:
    """What a JSON file holds, and its values of `keys`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record, *(record[key] for key in keys)
    except (ValueError, KeyError, TypeError) as err:
        raise WorkError(f"{path} cannot be read", repr(err), "Save or fetch the folder again") from err
