"""Qwen2-VL and Qwen2.5-VL (so Lingshu): images of any shape, cut into patches of which 2 x 2 make one token.

An image is resized to multiples of 28 px near its own size, within bounds on its area, so the token count follows the
image. The language model gives text one position a token and an image three (time, row, column) from the grid.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_window_index

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.codecs import CoordinateCodec, Pixels
from lightbox.backbones.reading import ImageFields, Placed
from lightbox.backbones.vision import VisionFeatures
from lightbox.errors import RequestError


class Qwen2VlBackbone(Backbone):
    """Qwen2-VL: every layer of the tower sees the whole image; boxes in thousandths."""

    IMAGE_FIELDS = ("pixel_values", "image_grid_thw")
    TYPE_FIELD = "mm_token_type_ids"

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

    def tokens_per_image(self, pixels: ImageFields) -> list[int]:
        """Patches of the resized image by those that make a token."""
        return [rows * columns for rows, columns in self.grids(pixels)]

    def project(self, features: VisionFeatures) -> list[Float[Tensor, "p d"]]:
        """See `Backbone.project`; tokens may have been left out."""
        projector = self.part(self.family.projector)
        return [projector(rearrange(patches, "p m c -> (p m) c")) for patches in features.patches]

    def positions(self, tokens: dict[str, Tensor], grids: list[Tensor] | None) -> Tensor:
        """Four rows of positions: one of text, then time, row and column.

        The model itself would go on from the images of the last batch that it generated for.
        """
        mask = tokens["attention_mask"]
        text = (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 0)
        in_order = torch.cat(grids or [])
        sides, _ = self.core.model.get_rope_index(
            tokens["input_ids"],
            tokens[self.TYPE_FIELD],
            image_grid_thw=in_order if len(in_order) else None,
            attention_mask=mask,
        )
        return torch.cat([text[None], sides])

    def grids(self, pixels: ImageFields) -> list[tuple[int, int]]:
        """Tokens of each resized image."""
        merge = self._merge()
        return [(rows // merge, columns // merge) for _, rows, columns in pixels["image_grid_thw"].tolist()]

    def split_patches(self, hidden: Tensor, pixels: ImageFields) -> list[Tensor]:
        """Patches by token and image; the tower keeps those of a token together."""
        by_token = rearrange(hidden, "(p m) c -> p m c", m=self._merge() ** 2)
        return list(by_token[self._token_order(pixels["image_grid_thw"])].split(self.tokens_per_image(pixels)))

    def split_layer(self, hidden: Tensor, pixels: ImageFields) -> list[Tensor]:
        """Patches row by row: m patches a token, and a picture has m rows of patches a row of tokens."""
        merge = self._merge()
        return [
            rearrange(patches, "(h w) (a b) c -> (h a w b) c", w=columns, a=merge)
            for patches, (_, columns) in zip(self.split_patches(hidden, pixels), self.grids(pixels), strict=True)
        ]

    def image_fields(self, pixels: ImageFields, index: list[int], features: list[Tensor] | None) -> Placed:
        """See `Reader.image_fields`; positions are made from the grid of every place."""
        fields, shared = super().image_fields(pixels, index, features)
        if shared is None:
            return fields, None
        counts = self.tokens_per_image(pixels)
        if features is not None and [len(tokens) for tokens in features] != counts:
            raise RequestError(
                f"Features of {[len(tokens) for tokens in features]} tokens for images of {counts}",
                f"{self.family.name} places a token by its row and column, which pruned tokens alone do not tell",
                "Hand in all tokens",
            )
        return {"image_grid_thw": pixels["image_grid_thw"][index]}, shared

    def grids_of(self, pixels: ImageFields, index: list[int], per_row: list[int]) -> list[Tensor]:
        """See `Backbone.grids_of`."""
        grids = pixels.get("image_grid_thw", torch.empty(0, 3, dtype=torch.long))
        return list(grids[index].split(per_row))

    def _token_order(self, grid_thw: Tensor) -> Tensor:
        """Place among the tower's tokens of each token, counted row by row, image after image."""
        return torch.arange(int(grid_thw.prod(dim=-1).sum()) // self._merge() ** 2, device=grid_thw.device)

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

    def _token_order(self, grid_thw: Tensor) -> Tensor:
        """The tower sorts its rows by window."""
        vision = self.core.config.vision_config
        windows, _ = get_vision_window_index(
            grid_thw,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        return torch.argsort(windows).to(grid_thw.device)
