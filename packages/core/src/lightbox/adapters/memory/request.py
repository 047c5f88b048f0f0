"""What is to be trained and how, and what of it one forward pass is given. No torch."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lightbox.backbones.families import Family
from lightbox.backbones.sizes import Images, ImageSizes, sizes_of
from lightbox.config import LANGUAGE, AdapterConfig

ITEMS = {"fp32": 4, "bf16": 2, "fp16": 2}
"""dtype -> bytes a number, w."""


@dataclass(frozen=True)
class Request:
    """What is to be trained, and how.

    Args:
        config: config.json of the model.
        family: names of its parts.
        adapter: what is trained, and how the rest is stored.
        batch: rows of a forward pass (optim.micro_batch_size).
        tokens: length of each, image tokens included; of the prompt for an encoder-decoder. With `keep` below 1 it is
            the length before pruning.
        supervised: target tokens a row, with the end token.
        dtype: fp32, bf16 or fp16, of what is not quantised.
        optimizer: see `lightbox.config.OptimConfig`.
        checkpoint_layers: see `lightbox.config.TrainConfig`.
        device: cpu or cuda.
        attention: sdpa, xformers and flash cost the same; eager keeps the score matrix.
        images: what a row's images are.
        keep: share of visual tokens that the language model reads, in (0, 1].
        accumulates: True where a step has several forward passes, so that gradients are there from the first on.
        is_padded: True where rows differ in length; None means from two rows on.
    """

    config: Mapping[str, Any]
    family: Family
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    batch: int = 1
    tokens: int = 1024
    supervised: int = 64
    dtype: str = "bf16"
    optimizer: str = "adamw"
    checkpoint_layers: bool = True
    device: str = "cuda"
    attention: str = "sdpa"
    images: Images = field(default_factory=Images)
    keep: float = 1.0
    accumulates: bool = False
    is_padded: bool | None = None

    @property
    def is_full(self) -> bool:
        return self.adapter.kind == "none"

    @property
    def has_padding(self) -> bool:
        """True where rows differ in length, so that attention needs a mask."""
        return self.batch > 1 if self.is_padded is None else self.is_padded

    @cached_property
    def adapted(self) -> re.Pattern[str]:
        """Paths of adapted layers, of which full training has none."""
        lists, names = ("|".join(map(re.escape, part)) for part in (self.family.layers, self.family.linears))
        own = rf"(?:{lists})\.\d+\.(?:.+\.)?(?:{names})"
        return re.compile("(?!)" if self.is_full else own if self.adapter.targets == LANGUAGE else self.adapter.targets)

    @cached_property
    def row_images(self) -> ImageSizes:
        """Images of a row, with the image tokens that pruning leaves."""
        sizes = sizes_of(self.config, self.family, self.images)
        return replace(sizes, visual=math.ceil(sizes.visual * self.keep))

    @property
    def row_tokens(self) -> int:
        """Length of a row after pruning."""
        return self.tokens - sizes_of(self.config, self.family, self.images).visual + self.row_images.visual
