"""What is to be trained and how, and what of it one forward pass is given. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightbox.backbones.families import Family
from lightbox.backbones.sizes import Images, sizes_of
from lightbox.config import AdapterConfig

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


@dataclass(frozen=True)
class Load:
    """What one micro-batch is; everything but `sequences` is a row's.

    Args:
        sequences: rows, b.
        tokens: length of each, image tokens included; of the prompt for an encoder-decoder.
        supervised: target tokens.
        visual: image tokens that the language model reads.
        images: images (or tiles).
        patches: what Qwen's tower makes of the images.
        image_px: side of an image, for Florence-2's tower.
        is_padded: True where rows differ in length, so that attention needs a mask.
    """

    sequences: int
    tokens: int
    supervised: int
    visual: int = 0
    images: int = 1
    patches: int = 0
    image_px: int = 0
    is_padded: bool = False


def load_of(request: Request) -> Load:
    """What one forward pass is given; pruning takes visual tokens away from the row."""
    sizes = sizes_of(request.config, request.family, request.images)
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
    )


def describe(name: str, request: Request) -> str:
    """One line that names a step: what a recorded measurement is found by."""
    adapter = request.adapter
    kind = "full" if adapter.kind == "none" else f"{'lora' if adapter.quant == 'none' else adapter.quant} r{adapter.r}"
    layers = ", checkpointed" if request.checkpoint_layers else ""
    pruning = f", {request.keep:g} of the visual tokens" if request.keep < 1 else ""
    return (
        f"{name}, {kind}, {request.dtype}, batch {request.batch}, {request.tokens} tokens{pruning}, "
        f"{request.supervised} supervised, {request.optimizer}{layers}, {request.device}"
    )
