"""Sizes of a model from its config.json: what the file does not say is the default of transformers 5.23. No torch."""

from collections.abc import Mapping
from typing import Any

from lightbox.adapters.memory.defaults import DEFAULTS, OLD_NAMES, PARTS
from lightbox.errors import RequestError

Config = Mapping[str, Any]


class Shape(dict[str, Any]):
    """Values of one part of a config, its defaults filled in, read as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as err:
            raise AttributeError(name) from err

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.get("head_dim") or self["hidden_size"] // self["num_attention_heads"]

    @property
    def key_width(self) -> int:
        """Width of all keys, and of all values: fewer heads than the queries have under grouped attention."""
        return (self.get("num_key_value_heads") or self["num_attention_heads"]) * self.head_width


def whole(config: Config) -> Shape:
    """Values of the model itself, without its parts."""
    return _filled(config, str(config["model_type"]))


def text_of(config: Config) -> Shape:
    """Sizes of the language model; older files of Qwen2-VL hold them beside those of the tower."""
    own = config.get("text_config")
    default = PARTS[config["model_type"]][0]
    return _filled(own or {**config, "model_type": default}, default)


def vision_of(config: Config) -> Shape:
    """Sizes of the vision tower.

    Raises:
        RequestError: where the file has none, or a tower that is not known here.
    """
    own = config.get("vision_config")
    if not own:
        raise RequestError(
            f"A config.json of model_type {config['model_type']} without vision_config",
            "Nothing then says how large its tower is",
            "Use the config.json that save_pretrained wrote",
        )
    return _filled(own, PARTS[config["model_type"]][1])


def is_tied(config: Config) -> bool:
    """True where the head is the token table: said at the top or, in older files, in the text part."""
    kind = config["model_type"]
    if kind == "t5":
        return True
    own, text = config.get("tie_word_embeddings"), config.get("text_config") or {}
    if kind in ("gemma3", "florence2"):
        return own is not False
    return bool(own or text.get("tie_word_embeddings"))


def context_of(config: Config) -> int | None:
    """Longest row that there are positions for; None for T5, whose positions are relative."""
    return None if config["model_type"] == "t5" else int(text_of(config)["max_position_embeddings"])


def _filled(own: Config, default: str) -> Shape:
    kind = str(own.get("model_type") or default)
    kind = OLD_NAMES.get(kind, kind) if default in OLD_NAMES.values() else kind
    if kind not in DEFAULTS:
        raise RequestError(
            f"A part of model_type '{kind}'",
            f"Its layers are not known to the memory model, which has {', '.join(DEFAULTS)}",
            "Measure it instead: train one step and read the peak",
        )
    return Shape(DEFAULTS[kind] | dict(own) | {"model_type": kind})
