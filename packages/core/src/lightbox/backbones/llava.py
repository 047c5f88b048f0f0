"""LLaVA-1.5 and LLaVA-NeXT, with Llama or Mistral bodies (so LLaVA-Med), on a CLIP or SigLIP tower."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lightbox.backbones.backbone import Backbone, VisionTokens
from lightbox.errors import RequestError

PLAIN = "USER: {image}{prompt} ASSISTANT:"
"""LLaVA-1.5's prompt, for a processor that was saved without a template."""
HAS_CLASS_TOKEN = ("clip_vision_model",)
"""Model types of towers whose first token is no patch."""


class LlavaBackbone(Backbone):
    """LLaVA-1.5: the image is resized to the tower's square, and each patch is one token."""

    def write_prompt(self, prompt: str, *, has_image: bool) -> str:
        """The processor's template; LLaVA-1.5's own where it has none."""
        if getattr(self.processor, "chat_template", None):
            return super().write_prompt(prompt, has_image=has_image)
        return PLAIN.format(image=f"{self.processor.image_token}\n" if has_image else "", prompt=prompt)

    def tokens_per_image(self, encoded: dict[str, Tensor]) -> list[int]:
        """Patches of the square, and the class token where the config keeps it."""
        count, _, height, width = encoded["pixel_values"].shape
        rows, columns = self._grid(height, width)
        return [rows * columns + self._extra_tokens()] * count

    def vision_tokens(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionTokens:
        """See `Backbone.vision_tokens`."""
        pixels = self._pixels(images)["pixel_values"]
        with tapped(self.part(self.family.vision), layers) as taps:
            tokens = self.core.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        prefix = self._prefix_tokens()
        return VisionTokens(
            tokens=list(tokens),
            taps={layer: list(output[:, prefix:]) for layer, output in taps.items()},
            grids=[self._grid(*pixels.shape[-2:])] * len(images),
        )

    def _pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        encoded = self.processor.image_processor([image.convert("RGB") for image in images], return_tensors="pt")
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in encoded.items()
        }

    def _grid(self, height_px: int, width_px: int) -> tuple[int, int]:
        patch = self.core.config.vision_config.patch_size
        return height_px // patch, width_px // patch

    def _prefix_tokens(self) -> int:
        return int(self.core.config.vision_config.model_type in HAS_CLASS_TOKEN)

    def _extra_tokens(self) -> int:
        """Tokens that the projector gives beyond patches: "default" drops the first of the tower, whatever it is."""
        drops = self.core.config.vision_feature_select_strategy == "default"
        return self._prefix_tokens() - int(drops)


@contextmanager
def tapped(tower: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record the outputs of layers of a tower while it runs.

    Args:
        tower: its longest list of layers counts.
        layers: places in that list.

    Yields:
        Place, as asked for -> b p c, filled by the forward; the hooks are gone afterwards.

    Raises:
        RequestError: a place outside the list.
    """
    found = max((part for part in tower.modules() if isinstance(part, nn.ModuleList)), key=len)
    outside = [layer for layer in layers if not -len(found) <= layer < len(found)]
    if outside:
        raise RequestError(
            f"Layers {outside} of a tower with {len(found)} layers",
            f"Places go from 0 to {len(found) - 1}, or from -{len(found)} to -1",
            "Name layers that are there",
        )
    taps: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            taps[layer] = output if isinstance(output, torch.Tensor) else output[0]

        return hook

    handles = [found[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
