"""T5 and its fine-tunes (UnifiedQA): text in, text out, by the same interface as the families that read images."""

from lightbox.backbones.backbone import Backbone
from lightbox.errors import RequestError


class T5Backbone(Backbone):
    """A text-only encoder-decoder; a prompt is read as it is."""

    @property
    def context_tokens(self) -> int | None:
        """None: positions are relative."""
        return None

    def write_prompt(self, prompt: str, *, has_image: bool) -> str:
        """The prompt itself."""
        if has_image:
            raise RequestError("Images for a T5", "It reads text only", "Leave images out, or use another backbone")
        return prompt
