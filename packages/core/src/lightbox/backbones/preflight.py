"""Refuse what cannot work before anything long: a second of reading JSON instead of minutes of loading. No torch.

`check_request` is what `load` does first and what a config step can do at once. For a hub id it sees the name and the
revision only; `check_config` then reads the hub's config.json.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lightbox.backbones import weights
from lightbox.backbones.families import Family, family_of
from lightbox.config import QUANTS, check_choice
from lightbox.errors import RequestError

BACKEND = "bitsandbytes"
ADAPTER = "adapter_config.json"
SHARDS = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
ORIGINAL_FLORENCE = "florence2_language"
ORIGINAL_LLAVA = {
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
}
"""model_type or class in a config.json of LLaVA's own code -> model_type of its language model."""


def check_request(
    name: str,
    revision: str = "",
    *,
    quant: str = "none",
    max_tokens: int = 0,
    key: str = "model.backbone",
    tokens_key: str = "max_tokens",
) -> Family | None:
    """Check a request for a model, as far as can be known without loading it.

    Args:
        name: see `weights.locate`.
        revision: full commit hash of a hub id.
        quant: none, nf4 or int8.
        max_tokens: longest row asked for; 0 is not checked.
        key, tokens_key: config keys that gave the name and `max_tokens`, for messages.

    Returns:
        The family; None for a hub id, whose config.json is read when it is loaded.

    Raises:
        RequestError: what is wrong, with what to do instead.
    """
    check_choice("adapter.quant", quant, QUANTS)
    if quant != "none" and importlib.util.find_spec(BACKEND) is None:  # looked for and not imported: that takes seconds
        raise RequestError(
            f"adapter.quant is {quant}",
            f"Quantised weights need {BACKEND}, which is not installed",
            "Install lightbox-core with it, or set adapter.quant=none",
        )
    _check_adapter_folder(name, key)
    place = weights.locate(name, revision=revision, key=key)
    if place.folder is None:
        return None
    request = f"{key} is '{name}'"
    config = _read(place.folder / weights.CONFIG, request)
    family = check_config(config, name=name, key=key)
    # T5 counts distances, and n_positions in its config bounds nothing
    context = None if family.name == "t5" else _text_config(config).get("max_position_embeddings")
    if context is not None and max_tokens > context:
        raise RequestError(
            f"{tokens_key} is {max_tokens} and {request}, with positions for {context} tokens",
            "A prompt beyond the context reads positions that were never trained",
            f"Set {tokens_key} to at most {context}",
        )
    check_files(place.folder, request)
    _check_companions(place.folder, family, config, request)
    return family


def check_config(config: Mapping[str, Any], *, name: str, key: str = "model.backbone") -> Family:
    """Check config.json alone; see `check_request`."""
    request = f"{key} is '{name}'"
    if original_body(config) or "mm_vision_tower" in config:
        raise RequestError(
            f"{request}, of model_type '{config.get('model_type')}'",
            "It is in the layout of LLaVA's own code, which transformers does not read",
            f"Convert it once with 'lightbox data convert {name} NEW-FOLDER' and set {key} to the new folder",
        )
    family = family_of(config, name=name, key=key)
    if _text_config(config).get("model_type") == ORIGINAL_FLORENCE:
        raise RequestError(
            f"{request}, a Florence-2 in the layout of the code that comes with it",
            "Such code can do anything on this machine, and transformers' own Florence-2 names its tensors otherwise",
            "Use the same weights as published under florence-community",
        )
    if "quantization_config" in config:
        raise RequestError(
            f"{request}, whose weights are quantised already",
            "What storage costs could not be chosen here, nor could an adapter be merged without loss",
            "Use the 16-bit weights that it was made from, and set adapter.quant",
        )
    return family


def original_body(config: Mapping[str, Any]) -> str:
    """model_type of the language model of a LLaVA in its authors' layout; "" for another layout."""
    names = [*(config.get("architectures") or ()), config.get("model_type", "")]
    return next((ORIGINAL_LLAVA[name] for name in names if name in ORIGINAL_LLAVA), "")


def _check_adapter_folder(name: str, key: str) -> None:
    folder = Path(name).expanduser()
    # a merged folder may keep the adapter's description beside the model
    if not (folder / ADAPTER).is_file() or (folder / weights.CONFIG).is_file():
        return
    base = _read(folder / ADAPTER, f"{key} is '{name}'").get("base_model_name_or_path") or "the model it was trained on"
    raise RequestError(
        f"{key} is '{name}', a folder with an adapter and no model",
        "An adapter is a change of a base model and means nothing without it",
        f"Load this folder with lightbox.adapters.artifact.load, which finds its base, or set {key} to {base}",
    )


def check_files(folder: Path, request: str) -> None:
    """Check that every file of safetensors is there and as long as its own header says.

    Raises:
        RequestError: with the file that is missing or cut off.
    """
    files = {path.name for path in folder.glob("*.safetensors")}
    if (folder / SHARDS).is_file():
        shard_files = set(_read(folder / SHARDS, request).get("weight_map", {}).values())
        missing, count = sorted(shard_files - files), len(shard_files)
        if missing:
            raise RequestError(
                f"{request}: {SHARDS} names {count} files, {len(missing)} are missing, the first is {missing[0]}",
                "Part of the weights would be random",
                "Fetch the missing files into that folder",
            )
        files = shard_files  # files beside the index (an older single file, an adapter) are not loaded
    for file in sorted(files):
        if not (folder / file).is_file():  # a pipe would be waited for
            raise RequestError(
                f"{request}: {file} is no file",
                "It is a link that leads nowhere, a folder, a pipe or a device",
                "Put the file itself into that folder",
            )
        try:
            with safe_open(folder / file, "numpy"):  # the header alone is read: milliseconds
                pass
        except OSError as err:
            raise RequestError(f"{request}: {file}", f"It cannot be read: {err}", "Fetch the file again") from err
        except SafetensorError as err:
            raise RequestError(
                f"{request}: {file} has {(folder / file).stat().st_size:,} bytes, and its header says otherwise: {err}",
                "The file was cut off, or is not the file itself but a pointer to it",
                "Fetch the file again",
            ) from err


def _check_companions(folder: Path, family: Family, config: Mapping[str, Any], request: str) -> None:
    """A tokenizer, and a processor for a family that reads images, that fit the model."""
    companions = [("a tokenizer", TOKENIZERS), *([("an image processor", PROCESSORS)] if family.has_vision else [])]
    for what, names in companions:
        if not any((folder / name).is_file() for name in names):
            raise RequestError(
                f"{request}, a folder without {what}",
                f"One of {', '.join(names)} is needed to read what is shown to the model",
                "Copy the files of that kind from where the weights come from",
            )
    rows = _text_config(config).get("vocab_size")
    tokenizer = folder / TOKENIZERS[0]
    added = _read(tokenizer, request).get("added_tokens", []) if tokenizer.is_file() else []
    highest = max((token["id"] for token in added), default=-1)
    if rows is not None and highest >= rows:
        raise RequestError(
            f"{request}: its tokenizer has ids up to {highest} and the model {rows} embeddings",
            "A token without an embedding cannot be read",
            "Use the tokenizer that was saved with the model",
        )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("text_config") or config


def _read(path: Path, request: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise RequestError(
            f"{request}: {path.name} is no JSON", "The file is damaged, or a pointer to the file", "Fetch it again"
        ) from err
