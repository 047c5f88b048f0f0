"""T5 and its fine-tunes (UnifiedQA): text in, text out, by the same interface as the families that read images."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from lightbox.backbones import rows
from lightbox.backbones.backbone import Backbone


class T5Backbone(Backbone):
    """A text-only encoder-decoder; a prompt is read as it is, with the end token behind it."""

    @property
    def context_tokens(self) -> int | None:
        """None: positions are relative."""
        return None

    def write_prompt(self, prompt: str, *, has_image: bool) -> str:
        """The prompt itself."""
        if has_image:
            raise self.no_images()
        return prompt

    def encode_prompts(self, images: Sequence[Image.Image] | None, texts: Sequence[str]) -> dict[str, Tensor]:
        """Ids with the end token, which T5's own tokenizer writes and one trained here may not."""
        found = rows.unpadded(super().encode_prompts(images, texts))
        ended = [row if row["input_ids"][-1:] == [self.end_id] else rows.extended(row, [self.end_id]) for row in found]
        return rows.padded(ended, self.tokenizer.pad_token_id, side="right")
