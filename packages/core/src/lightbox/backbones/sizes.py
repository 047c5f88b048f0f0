"""Sizes of a model from its config.json, and what an image costs it. No torch.

What the file does not say is the default of transformers 5.23, which `sizes.json` holds for the values that are read.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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


# ---- towers


class Stage(NamedTuple):
    """Layers of one width: `rows` of a row of text, its layers' `heads`, patches of an attention `window` (0: all).

    `numbers` are those of what makes its rows (patches, positions).
    """

    rows: int
    width: int
    numbers: int
    depth: int
    heads: int
    window: int = 0


class Tower(NamedTuple):
    """A vision tower and what maps its `rows` to the language model: in and out of the projector's linear layers.

    `pixels` are the numbers that it is given for a row of text, `others` further numbers of the projector, `unread` the
    place of the layer behind the features that are read.
    """

    pixels: int
    stages: tuple[Stage, ...]
    rows: int
    projector: tuple[tuple[int, int], ...]
    others: int = 0
    unread: int | None = None


def tower_of(config: Config, family: Family, images: ImageSizes, width: int) -> Tower:
    """Sizes of a tower for the images of a row, and of a projector to `width`."""
    shape, tiles = vision_of(config), images.tiles
    if family.name.startswith("qwen"):
        inside, joined = shape.get("embed_dim") or shape.hidden_size, shape.spatial_merge_size**2
        patch = shape.in_channels * shape.patch_size**2 * shape.temporal_patch_size
        steps = (inside * joined, inside * joined), (inside * joined, shape.get("out_hidden_size") or shape.hidden_size)
        stage = Stage(images.patches, inside, patch * inside, shape.depth, shape.num_heads)
        return Tower(images.patches * patch, (stage,), images.patches // joined, steps)
    if family.name == "florence2":
        stages, side, before = [], images.image_px, shape.in_channels
        keys = ("embed_dim", "patch_size", "patch_stride", "patch_padding", "depths", "num_heads")
        for inside, kernel, stride, padding, depth, heads in zip(*(shape[key] for key in keys), strict=True):
            side, numbers = (side + 2 * padding - kernel) // stride + 1, before * kernel**2 * inside
            # a block attends inside of windows, then between channels
            stages.append(Stage(tiles * side * side, inside, numbers, 2 * depth, heads, shape.window_size**2))
            before = inside
        steps = ((before, shape.projection_dim),)
        pixels = tiles * shape.in_channels * images.image_px**2
        return Tower(pixels, tuple(stages), stages[-1].rows, steps, shape.max_position_embeddings * before)
    patches, inside, is_gemma = (shape.image_size // shape.patch_size) ** 2, shape.hidden_size, family.name == "gemma3"
    numbers = (shape.num_channels * shape.patch_size**2 + patches) * inside
    rows = tiles * (patches + (not is_gemma))  # CLIP has a class token
    stage = Stage(rows, inside, numbers, shape.num_hidden_layers, shape.num_attention_heads)
    pixels = tiles * shape.num_channels * shape.image_size**2
    if is_gemma:
        return Tower(pixels, (stage,), tiles * whole(config).mm_tokens_per_image, ((inside, width),))
    unread = stage.depth + 1 + whole(config).get("vision_feature_layer", -1)
    return Tower(pixels, (stage,), tiles * patches, ((inside, width), (width, width)), unread=unread)
