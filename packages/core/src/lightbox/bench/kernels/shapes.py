"""Sizes that operators are timed at: five of real models (S1 to S5), and smaller forms of them for a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What a batch of images is to the operators.

    Args:
        name: of the model's sizes, as tables show it.
        patches: tokens that see each other in the tower, of each sequence.
        tiles: tokens of each tile, among which a budget is shared.
        images: tokens of each image, among which picks are made.
        keep: tokens that each image keeps.
        heads, head_width: of the tower.
        width: of the tower's features.
        lm_width: of the language model.
        text: text tokens beside each image.
        axes: positions a token has: 1, or 3 for multimodal rotary embeddings.
        vocabulary: rows of the embedding table.
        has_gradients: forward and backward of the operators that have gradients, and nothing else.
    """

    name: str
    patches: Sequence[int]
    tiles: Sequence[int]
    images: Sequence[int]
    keep: Sequence[int]
    heads: int = 16
    head_width: int = 64
    width: int = 1024
    lm_width: int = 4096
    text: int = 64
    axes: int = 1
    vocabulary: int = 32_000
    has_gradients: bool = False


def _llava(name: str, batch: int, keep: int, **sizes: bool) -> Shape:
    return Shape(name, [577] * batch, [576] * batch, [576] * batch, [keep] * batch, **sizes)


def _next(name: str, batch: int, keep: int) -> Shape:
    return Shape(name, [577] * 5 * batch, [576] * 5 * batch, [2880] * batch, [keep] * batch)


def _qwen(name: str, patches: Sequence[int], share: float, *, has_gradients: bool = False) -> Shape:
    tokens = [count // 4 for count in patches]
    keep = [round(share * count) for count in tokens]
    sizes = {"head_width": 80, "width": 1280, "lm_width": 3584, "axes": 3, "has_gradients": has_gradients}
    return Shape(name, patches, tokens, tokens, keep, **sizes)


def _gemma(name: str, slices: int, share: float, *, has_gradients: bool = False) -> Shape:
    tokens, keep = [256] * slices, [round(share * 256)] * slices
    sizes = {"head_width": 72, "width": 2560, "lm_width": 2560, "has_gradients": has_gradients}
    return Shape(name, [4096] * slices, tokens, tokens, keep, **sizes)


FULL = (
    _llava("S1 LLaVA-1.5 B1", 1, 64),
    _llava("S1 LLaVA-1.5 B4", 4, 128),
    _llava("S1 LLaVA-1.5 B16", 16, 192),
    _next("S2 LLaVA-NeXT B1", 1, 288),
    _next("S2 LLaVA-NeXT B4", 4, 576),
    _qwen("S3 Qwen2.5-VL 2116", [2116], 0.25),
    _qwen("S3 Qwen2.5-VL 5476", [5476], 0.10),
    _qwen("S3 Qwen2.5-VL mixed", [2116, 5476, 1024, 4096], 0.25),
    _gemma("S4 MedGemma B1", 1, 0.25),
    _gemma("S4 MedGemma 16 slices", 16, 0.05),
    _llava("S5 training, LLaVA-1.5 B4", 4, 64, has_gradients=True),
    _qwen("S5 training, Qwen2.5-VL B2", [2116] * 2, 0.25, has_gradients=True),
    _gemma("S5 training, MedGemma 8 slices", 8, 0.25, has_gradients=True),
)
"""At full size, for a card of 24 GB."""
_NARROW = {"heads": 4, "width": 256, "lm_width": 512, "vocabulary": 4000}
_TRAINED = {"lm_width": 512, "vocabulary": 4000, "width": 256, "has_gradients": True}
SMALL = (
    Shape("S1 LLaVA-1.5 B2, scaled down", [577] * 2, [576] * 2, [576] * 2, [64] * 2, **_NARROW),
    Shape("S2 LLaVA-NeXT B1, scaled down", [145] * 5, [144] * 5, [720], [72], **_NARROW),
    Shape(
        "S3 Qwen2.5-VL mixed, scaled down", [484, 256], [121, 64], [121, 64], [30, 16], head_width=80, axes=3, **_NARROW
    ),
    Shape("S4 MedGemma 2 slices, scaled down", [1024] * 2, [64] * 2, [64] * 2, [16] * 2, head_width=72, **_NARROW),
    Shape("S5 training, LLaVA-1.5 B2, scaled down", [577] * 2, [576] * 2, [576] * 2, [64] * 2, **_TRAINED),
)
"""The same, narrower and with fewer images, for one core: a call of any form takes at most about a second."""
