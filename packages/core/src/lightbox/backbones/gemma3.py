"""Gemma 3 (so MedGemma): a square image at 896 px, pooled to 256 tokens that see each other in both directions.

`token_type_ids` says which tokens belong to an image. The model needs it in training as in generation: without it
image tokens would be read left to right, as text is, and the model would be another one.
"""

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from lightbox.backbones.backbone import Backbone, VisionTokens
from lightbox.backbones.llava import tapped

END_OF_TURN = "<end_of_turn>"


class Gemma3Backbone(Backbone):
    """Gemma 3 with its SigLIP tower."""

    @property
    def end_id(self) -> int:
        """The end of a turn, which closes an answer of the chat models; the end of a text where there is none."""
        turn_end = self.tokenizer.get_vocab().get(END_OF_TURN)
        return self.tokenizer.eos_token_id if turn_end is None else turn_end  # a plain text model has no turns

    def encode_prompts(self, images: Sequence[Image.Image] | None, texts: Sequence[str]) -> dict[str, Tensor]:
        """Call the processor with a list of images a text, which is how it tells whose they are."""
        nested: Any = None if images is None else [[image] for image in images]
        return super().encode_prompts(nested, texts)

    def tokens_per_image(self, encoded: dict[str, Tensor]) -> list[int]:
        """The same count for every image."""
        return [self.core.config.mm_tokens_per_image] * len(encoded["pixel_values"])

    def vision_tokens(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionTokens:
        """See `Backbone.vision_tokens`; taps hold one row a patch, before pooling."""
        pixels = self.pixels(images)["pixel_values"]
        with tapped(self.part(self.family.vision), layers) as taps:
            tokens = self.core.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        side = math.isqrt(self.core.config.mm_tokens_per_image)
        return VisionTokens(
            tokens=list(tokens),
            taps={layer: list(output) for layer, output in taps.items()},
            grids=[(side, side)] * len(images),
        )
