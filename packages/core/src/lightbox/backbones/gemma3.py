"""Gemma 3 (so MedGemma): a square image at 896 px, pooled to 256 tokens that see each other in both directions.

`token_type_ids` says which tokens belong to an image. The model needs it in training as in generation: without it
image tokens would be read left to right, as text is, and the model would be another one.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.reading import ImageFields
from lightbox.backbones.vision import VisionFeatures

END_OF_TURN = "<end_of_turn>"


class Gemma3Backbone(Backbone):
    """Gemma 3 with its SigLIP tower."""

    TYPE_FIELD = "token_type_ids"

    @property
    def end_id(self) -> int:
        """The end of a turn, which closes an answer of the chat models; the end of a text where there is none."""
        # not by get_vocab, which makes a table of 262,144 tokens each time; a plain text model has no turns
        turn_end = self.tokenizer.convert_tokens_to_ids(END_OF_TURN)
        return self.tokenizer.eos_token_id if turn_end in (None, self.tokenizer.unk_token_id) else turn_end

    def text_ids(self, text: str, *, is_first: bool) -> list[int]:
        """See `Backbone.text_ids`; an image has a begin, an end and empty lines around its tokens."""
        image = f"\n\n{self.tokenizer.boi_token}{self.tokenizer.image_token}{self.tokenizer.eoi_token}\n\n"
        return super().text_ids(text.replace(self.tokenizer.boi_token, image), is_first=is_first)

    def tokens_per_image(self, pixels: ImageFields) -> list[int]:
        """The same count for every image."""
        return [self.core.config.mm_tokens_per_image] * len(pixels["pixel_values"])

    def project(self, features: VisionFeatures) -> list[Float[Tensor, "p d"]]:
        """See `Backbone.project`; all patches must be there, since squares of them are pooled first."""
        return list(self.part(self.family.projector)(torch.stack(features.patches)))

    def packed(self, tokens: list[Float[Tensor, "p d"]]) -> Any:
        """As one tensor, which this model takes."""
        return BaseModelOutputWithPooling(pooler_output=torch.cat(tokens))

    def grids(self, pixels: ImageFields) -> list[tuple[int, int]]:
        """The pooled square."""
        side = math.isqrt(self.core.config.mm_tokens_per_image)
        return [(side, side)] * len(pixels["pixel_values"])
