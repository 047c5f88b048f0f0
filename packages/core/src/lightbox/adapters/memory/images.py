"""What images cost: the tokens that the language model reads of a row's images, and what the tower sees of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightbox.adapters.memory import shapes
from lightbox.backbones.families import Family

QWEN_PX, FLORENCE_PX, NEXT_TILES = 672, 768, 5


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


def sizes_of(config: Mapping[str, Any], family: Family, images: Images) -> ImageSizes:
    """Tokens, tiles and patches of a row.

    LLaVA: s² tokens an image, s its side in patches. LLaVA-NeXT: s² for the whole image and 2·s·(2·s + 1) for four
    tiles with line ends. Gemma 3: as its config says. Qwen: patches are four times the tokens. Florence-2:
    (px / strides)² and one for the mean.
    """
    if not family.has_vision or images.count == 0:
        return ImageSizes()
    shape = shapes.vision_of(config)
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
        return ImageSizes(images.count * shapes.whole(config).mm_tokens_per_image, images.count)
    side = shape.image_size // shape.patch_size
    if family.name == "llava":
        return ImageSizes(images.count * side * side, images.count)
    usual = images.count * (side * side + 2 * side * (2 * side + 1))
    visual = usual if images.visual_tokens is None else images.visual_tokens
    return ImageSizes(visual, images.count * NEXT_TILES if visual == usual else -(-visual // (side * side)))
