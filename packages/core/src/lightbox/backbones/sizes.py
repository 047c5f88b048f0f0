"""Sizes of a model from its config.json, and what an image costs it. No torch.

What the file does not say is the default of transformers 5.23, which `sizes.json` holds for the values that are read.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightbox.backbones.families import Family
from lightbox.errors import RequestError

Config = Mapping[str, Any]
QWEN_PX, FLORENCE_PX, NEXT_TILES = 672, 768, 5
_FILE = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
DEFAULTS: dict[str, dict[str, Any]] = _FILE["kinds"]
"""model_type -> the values used here."""
PARTS: dict[str, tuple[str, str]] = _FILE["parts"]
"""model_type -> model types of its text and vision part where the file does not say."""
OLD_NAMES: dict[str, str] = _FILE["old_names"]
"""model_type of a part in older files -> its name now."""


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


# ---- images


@dataclass(frozen=True)
class Images:
    """A row's images.

    Args:
        count: images a row; 0 for text only.
        visual_tokens: image tokens a row in all, before pruning; None means the family's usual: what the processor
            makes of a square image of 672 px for Qwen, five tiles for LLaVA-NeXT.
    """

    count: int = 1
    visual_tokens: int | None = None


@dataclass(frozen=True)
class ImageSizes:
    """The same for a family: tokens, tiles and patches of a row, and the side of an image where a family takes any."""

    visual: int = 0
    tiles: int = 0
    patches: int = 0
    image_px: int = 0


def sizes_of(config: Config, family: Family, images: Images) -> ImageSizes:
    """Tokens, tiles and patches of a row.

    LLaVA: s² tokens an image, s its side in patches. LLaVA-NeXT: s² for the whole image and 2·s·(2·s + 1) for four
    tiles with line ends. Gemma 3: as its config says. Qwen: patches are four times the tokens. Florence-2:
    (px / strides)² and one for the mean.
    """
    if not family.has_vision or images.count == 0:
        return ImageSizes()
    shape = vision_of(config)
    if family.name.startswith("qwen"):
        merged = shape.spatial_merge_size**2
        usual = images.count * (QWEN_PX // shape.patch_size) ** 2 // merged
        visual = usual if images.visual_tokens is None else images.visual_tokens
        return ImageSizes(visual, images.count, visual * merged)
    if family.name == "florence2":
        stride = math.prod(shape.patch_stride)
        usual = images.count * ((FLORENCE_PX // stride) ** 2 + 1)
        visual = usual if images.visual_tokens is None else images.visual_tokens
        side = stride * math.isqrt(max(1, visual // images.count - 1))
        return ImageSizes(visual, images.count, 0, side)
    if family.name == "gemma3":
        return ImageSizes(images.count * whole(config).mm_tokens_per_image, images.count)
    side = shape.image_size // shape.patch_size
    if family.name == "llava":
        return ImageSizes(images.count * side * side, images.count)
    usual = images.count * (side * side + 2 * side * (2 * side + 1))
    visual = usual if images.visual_tokens is None else images.visual_tokens
    return ImageSizes(visual, images.count * NEXT_TILES if visual == usual else -(-visual // (side * side)))
