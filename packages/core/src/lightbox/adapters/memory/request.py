"""What is to be trained and how, and what of it the operations and the models need to know."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightbox.adapters.memory import images
from lightbox.adapters.memory.images import Images
from lightbox.adapters.memory.parts import Load
from lightbox.adapters.memory.setting import FLOAT32, Setting
from lightbox.backbones.families import Family
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


def setting_of(request: Request) -> Setting:
    """How the model is stored and trained."""
    adapter, is_t5 = request.adapter, request.family.name == "t5"
    has_adapters = adapter.kind == "lora"
    keeps_wo = is_t5 and (adapter.quant != "none" or request.dtype == "fp16")
    return Setting(
        item=ITEMS[request.dtype],
        quant=adapter.quant,
        trains_all=not has_adapters,
        targets=_pattern(request.family, adapter) if has_adapters else None,
        rank=adapter.r,
        is_fused=adapter.use_fused,
        dropout_prob=adapter.dropout_prob,
        use_dora=adapter.use_dora,
        projector=adapter.projector,
        kept=("wo",) if keeps_wo else (),
        kept_item=FLOAT32 if request.dtype == "fp16" else ITEMS[request.dtype],
        is_cuda=request.device == "cuda",
        attention=request.attention,
    )


def load_of(request: Request) -> Load:
    """What one forward pass is given; pruning takes visual tokens away from the row."""
    sizes = images.sizes_of(request.config, request.family, request.images)
    visual_tokens = math.ceil(sizes.visual * request.keep)
    return Load(
        sequences=request.batch,
        tokens=request.tokens - (sizes.visual - visual_tokens),
        supervised=request.supervised,
        visual=visual_tokens,
        images=sizes.tiles,
        patches=sizes.patches,
        image_px=sizes.image_px,
        is_padded=request.batch > 1 if request.is_padded is None else request.is_padded,
        checkpoints=request.checkpoint_layers,
    )


def _pattern(family: Family, adapter: AdapterConfig) -> re.Pattern[str]:
    """The paths that `adapters.lora` gives adapters to."""
    if adapter.targets != LANGUAGE:
        return re.compile(adapter.targets)
    layers = "|".join(re.escape(path) for path in family.layers)
    return re.compile(rf"(?:{layers})\.\d+\.(?:.+\.)?(?:{'|'.join(map(re.escape, family.linears))})")
