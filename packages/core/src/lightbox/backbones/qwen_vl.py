"""Qwen2-VL and Qwen2.5-VL (so Lingshu): images of any shape, cut into patches of which 2 x 2 make one token.

An image is resized to multiples of 28 px near its own size, within bounds on its area, so the token count follows the
image. The language model gives text one position a token and an image three (time, row, column) from the grid; the
model computes them itself from `image_grid_thw`, `mm_token_type_ids` and the mask, all of which `prepare` gives.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_window_index

from lightbox.backbones.backbone import Backbone, VisionTokens
from lightbox.backbones.codecs import CoordinateCodec, Pixels
from lightbox.backbones.llava import tapped
from lightbox.errors import RequestError


class Qwen2VlBackbone(Backbone):
    """Qwen2-VL: every layer of the tower sees the whole image; boxes in thousandths."""

    def limit_pixels(self, min_pixels: int, max_pixels: int) -> None:
        """Bound the area of resized images, and with it tokens and memory: 784 px of area are one token.

        Args:
            min_pixels: smaller images are enlarged; the published 3,136 are 4 tokens.
            max_pixels: larger images are shrunk; the published 12,845,056 are 16,384 tokens.

        Raises:
            RequestError: bounds that no grid of whole tokens meets.
        """
        if not self._token_side() ** 2 <= min_pixels <= max_pixels:
            raise RequestError(
                f"min_pixels is {min_pixels} and max_pixels is {max_pixels}",
                f"An image has at least one token, which is {self._token_side()} px wide and high",
                f"Set both to at least {self._token_side() ** 2}, min_pixels not above max_pixels",
            )
        self.processor.image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}

    def seen_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Width and height to which an image of a size is resized, in pixels.

        Raises:
            RequestError: one side is over 200 times the other.
        """
        size = self.processor.image_processor.size
        try:
            height, width = smart_resize(
                height_px, width_px, self._token_side(), size["shortest_edge"], size["longest_edge"]
            )
        except ValueError as err:
            raise RequestError(
                f"An image of {width_px} x {height_px} px", f"No {self.name} reads it: {err}", "Cut it into pieces"
            ) from err
        return width, height

    def tokens_per_image(self, encoded: dict[str, Tensor]) -> list[int]:
        """Patches of the resized image by those that make a token."""
        return (encoded["image_grid_thw"].prod(dim=-1) // self._merge() ** 2).tolist()

    def vision_tokens(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionTokens:
        """See `Backbone.vision_tokens`; taps hold one row a patch, four times as many as tokens, row by row."""
        inputs = self.pixels(images)
        grids = [(int(rows), int(columns)) for _, rows, columns in inputs["image_grid_thw"].tolist()]
        with tapped(self.part(self.family.vision), layers) as taps:
            tokens = self.core.get_image_features(**inputs, return_dict=True).pooler_output
        order = self._patch_order(inputs["image_grid_thw"])
        merge = self._merge()
        sizes = [rows * columns for rows, columns in grids]
        return VisionTokens(
            tokens=list(tokens),
            taps={layer: list(output[order].split(sizes)) for layer, output in taps.items()},
            grids=[(rows // merge, columns // merge) for rows, columns in grids],
        )

    def _patch_order(self, grid_thw: Tensor) -> Tensor:
        """Place in the tower's rows of each patch, counted row by row, image after image."""
        merge, start, places = self._merge(), 0, []
        for _, rows, columns in grid_thw.tolist():
            place = torch.arange(start, start + rows * columns, device=grid_thw.device)
            # the tower keeps the a x b patches of a token together; a picture is read row by row
            places.append(rearrange(place, "(h w a b) -> (h a w b)", w=columns // merge, a=merge, b=merge))
            start += rows * columns
        return torch.cat(places)

    def _merge(self) -> int:
        return self.core.config.vision_config.spatial_merge_size

    def _token_side(self) -> int:
        return self.core.config.vision_config.patch_size * self._merge()


class Qwen25VlBackbone(Qwen2VlBackbone):
    """Qwen2.5-VL: most layers of the tower see windows only; boxes in pixels of the resized image."""

    @property
    def codec(self) -> CoordinateCodec:
        """Pixels of the image as this processor resizes it."""
        return Pixels(self.seen_size)

    def _patch_order(self, grid_thw: Tensor) -> Tensor:
        """As for Qwen2-VL, after the tower has sorted its rows by window."""
        vision = self.core.config.vision_config
        windows, _ = get_vision_window_index(
            grid_thw,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        group = self._merge() ** 2
        unsorted = torch.argsort(windows).to(grid_thw.device)  # token -> its place among the sorted
        place = (unsorted[:, None] * group + torch.arange(group, device=grid_thw.device)).flatten()
        return place[super()._patch_order(grid_thw)]
