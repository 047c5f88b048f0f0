"""LLaVA-1.5 and LLaVA-NeXT, with Llama or Mistral bodies (so LLaVA-Med), on a CLIP or SigLIP tower."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from lightbox.backbones.backbone import Backbone, VisionTokens
from lightbox.errors import RequestError

PLAIN = "USER: {image}{prompt} ASSISTANT:"
"""LLaVA-1.5's prompt, for a processor that was saved without a template."""
HAS_CLASS_TOKEN = ("clip_vision_model",)
"""Model types of towers whose first token is no patch."""


class LlavaBackbone(Backbone):
    """LLaVA-1.5: the image is resized to the tower's square, and each patch is one token."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if self.processor.patch_size is None:  # processors saved before mid 2024 leave these to the model
            config = self.core.config
            self.processor.patch_size = config.vision_config.patch_size
            self.processor.vision_feature_select_strategy = config.vision_feature_select_strategy
            self.processor.num_additional_image_tokens = self._prefix_tokens()

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
        pixels = self.pixels(images)["pixel_values"]
        with tapped(self.part(self.family.vision), layers) as taps:
            tokens = self.core.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        prefix = self._prefix_tokens()
        return VisionTokens(
            tokens=list(tokens),
            taps={layer: list(output[:, prefix:]) for layer, output in taps.items()},
            grids=[self._grid(*pixels.shape[-2:])] * len(images),
        )

    def _grid(self, height_px: int, width_px: int) -> tuple[int, int]:
        patch = self.core.config.vision_config.patch_size
        return height_px // patch, width_px // patch

    def _prefix_tokens(self) -> int:
        return int(self.core.config.vision_config.model_type in HAS_CLASS_TOKEN)

    def _extra_tokens(self) -> int:
        """Tokens that the projector gives beyond patches: "default" drops the first of the tower, whatever it is."""
        drops = self.core.config.vision_feature_select_strategy == "default"
        # -1 for a SigLIP tower under "default", which drops a patch there
        return self._prefix_tokens() - int(drops)


class LlavaNextBackbone(LlavaBackbone):
    """LLaVA-NeXT: a small image of the whole, then tiles at higher resolution with one newline token a row.

    The tiles' grid is the one of the config that fits the image best; the tokens of its margins are left out, so the
    count follows the image's size and shape.
    """

    def tokens_per_image(self, encoded: dict[str, Tensor]) -> list[int]:
        """Tokens of the whole, of the rows of the tiles within the image, and a newline a row."""
        columns_and_rows = [self._tile_grid(size) for size in encoded["image_sizes"]]
        whole = self._side() ** 2 + self._extra_tokens()
        return [whole + rows * (columns + 1) for rows, columns in columns_and_rows]

    def vision_tokens(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionTokens:
        """See `Backbone.vision_tokens`; a grid is that of the tiles within the image, without whole and newlines."""
        inputs = self.pixels(images)
        sizes = inputs["image_sizes"]
        with tapped(self.part(self.family.vision), layers) as taps:
            tokens = self.core.get_image_features(**inputs, return_dict=True).pooler_output
        config = self.core.config
        tiles = [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in sizes
        ]
        prefix = self._prefix_tokens()
        return VisionTokens(
            tokens=list(tokens),
            taps={layer: list(output[:, prefix:].split(tiles)) for layer, output in taps.items()},
            grids=[self._tile_grid(size) for size in sizes],
        )

    def _side(self) -> int:
        vision = self.core.config.vision_config
        return vision.image_size // vision.patch_size

    def _tile_grid(self, size: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens that lie within an image of `size` (height, width in pixels)."""
        config = self.core.config
        rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        # transformers' own cut of margins, on a tensor without memory, so that its rounding is ours
        whole = torch.empty(1, rows * self._side(), columns * self._side(), device="meta")
        unpadded = unpad_image(whole, size)
        return unpadded.shape[1], unpadded.shape[2]


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
    # towers call their list layers, blocks or layer; the longest list is the one meant
    blocks = max((part for part in tower.modules() if isinstance(part, nn.ModuleList)), key=len)
    outside = [layer for layer in layers if not -len(blocks) <= layer < len(blocks)]
    if outside:
        raise RequestError(
            f"Layers {outside} of a tower with {len(blocks)} layers",
            f"Places go from 0 to {len(blocks) - 1}, or from -{len(blocks)} to -1",
            "Name layers that are there",
        )
    taps: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            taps[layer] = output if isinstance(output, torch.Tensor) else output[0]

        return hook

    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
