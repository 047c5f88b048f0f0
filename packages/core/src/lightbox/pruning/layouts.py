"""What each family's tower gives, and which token of the language model shows which patch.

The model's own packing is asked rather than repeated where it is more than an order: LLaVA-NeXT's cut of margins runs
on numbers in place of features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_window_index

from lightbox.backbones import vision
from lightbox.backbones.llava import HAS_CLASS_TOKEN
from lightbox.pruning import scores
from lightbox.pruning.types import NOWHERE, ImageInputs, TokenGrid

EARLY = 5 / 24
"""Depth of the early layer: the sixth of CLIP-L's 24 (VScan, arXiv 2505.22654)."""


@dataclass(frozen=True)
class LayerScores:
    """What a layer of the tower says of patches, one entry an image, in the order of its patches.

    Args:
        attention: p, in [0, 1].
        metric: p e, keys, mean over heads.
    """

    attention: list[Float[Tensor, " p"]]
    metric: list[Float[Tensor, "p e"]]


class Layout:
    """LLaVA-1.5: one square an image, row by row.

    Args:
        core: the model with its head, of transformers.
        vision_path: path of its tower, which the family's entry names.
    """

    def __init__(self, core: nn.Module, vision_path: str) -> None:
        self.core: Any = core
        self.config: Any = core.config
        self.tower: Any = core.get_submodule(vision_path)

    @property
    def blocks(self) -> nn.ModuleList:
        """The tower's layers."""
        return vision.blocks_of(self.tower)

    @property
    def prefix(self) -> int:
        """Leading tokens of the tower that are no patches."""
        return int(self.config.vision_config.model_type in HAS_CLASS_TOKEN)

    def feature_layer(self, inputs: ImageInputs) -> int:
        """Place of the layer whose output the projector reads; the last of several."""
        index = inputs.get("vision_feature_layer")
        index = self.config.vision_feature_layer if index is None else index
        index = index if isinstance(index, int) else index[-1]
        # hidden states begin with the embeddings, so from the front they are one ahead of the layers
        return index if index < 0 else max(index - 1, 0)

    def unread(self, inputs: ImageInputs, *, above: int) -> list[nn.Module]:
        """Layers behind the last whose output the projector reads, and behind the place `above`."""
        index = inputs.get("vision_feature_layer")
        index = self.config.vision_feature_layer if index is None else index
        n_states = len(self.blocks) + 1  # the embeddings are the first
        read = max(one % n_states for one in ([index] if isinstance(index, int) else index))
        return list(self.blocks[max(read, above + 1) :])

    def early_layer(self) -> int:
        """Place of the early layer, that of VScan."""
        return min(round(EARLY * len(self.blocks)), len(self.blocks) - 1)

    def grids(self, inputs: ImageInputs) -> list[TokenGrid]:
        """Where the tokens of each image lie."""
        height, width = inputs["pixel_values"].shape[-2:]
        patch = self.config.vision_config.patch_size
        drops = int(self._strategy(inputs) == "default")
        grid = TokenGrid.plain(
            height // patch,
            width // patch,
            before=max(self.prefix - drops, 0),
            skipped=max(drops - self.prefix, 0),
        )
        return [grid] * len(inputs["pixel_values"])

    def pixels(self, inputs: ImageInputs) -> list[Tensor]:
        """The pixels of each image, of any shape."""
        return list(inputs["pixel_values"])

    def layer_scores(self, tap: dict[str, Tensor], inputs: ImageInputs, around: Sequence[Tensor]) -> LayerScores:
        """What one layer says of patches.

        Args:
            tap: as `vision.tapped` records it.
            inputs: of the call.
            around: rotations that the layer got; empty for towers that rotate nothing.
        """
        heads = self.config.vision_config.num_attention_heads
        query, key = (rearrange(tap[name], "n s (k e) -> n s k e", k=heads) for name in (vision.QUERIES, vision.KEYS))
        if self.prefix:
            attention = scores.class_attention(query.transpose(1, 2), key.transpose(1, 2))
        else:
            packed = scores.mean_attention(query.flatten(0, 1), key.flatten(0, 1), [query.shape[1]] * len(query))
            attention = packed.view(len(query), -1)
        metric = key[:, self.prefix :].float().mean(dim=2)
        return LayerScores(
            [values[..., 0] for values in self.by_image(attention[..., None], inputs)], self.by_image(metric, inputs)
        )

    def by_image(self, values: Float[Tensor, "n p c"], inputs: ImageInputs) -> list[Float[Tensor, "p c"]]:
        """Values of the tower's patches -> those of the patches that became tokens, one entry an image."""
        skipped = int(not self.prefix and self._strategy(inputs) == "default")
        return list(values[:, skipped:])

    def _strategy(self, inputs: ImageInputs) -> str:
        own = inputs.get("vision_feature_select_strategy")
        return self.config.vision_feature_select_strategy if own is None else own


class NextLayout(Layout):
    """LLaVA-NeXT: the whole image, then its tiles as one plane, each row of them with a newline token."""

    def grids(self, inputs: ImageInputs) -> list[TokenGrid]:
        """See `Layout`; which patch each token shows is read off the model's own packing."""
        grids, side, known = [], self._side(), {}
        for size in inputs["image_sizes"].tolist():
            key = tuple(size)
            if key not in known:
                known[key] = self._grid(self._sources(key, inputs), key, side)
            grids.append(known[key])
        return grids

    def pixels(self, inputs: ImageInputs) -> list[Tensor]:
        """See `Layout`; without the tiles that fill up a batch."""
        counts = self._tiles(inputs)
        values = inputs["pixel_values"]
        if values.dim() == 4:
            return list(values.split(counts))
        return [own[:count] for own, count in zip(values, counts, strict=True)]

    def by_image(self, values: Float[Tensor, "n p c"], inputs: ImageInputs) -> list[Float[Tensor, "p c"]]:
        """See `Layout`."""
        sizes = [tuple(size) for size in inputs["image_sizes"].tolist()]
        pieces = values.split(self._tiles(inputs))
        chosen = []
        for size, tiles in zip(sizes, pieces, strict=True):
            source = self._sources(size, inputs)
            chosen.append(rearrange(tiles, "n p c -> (n p) c")[source[source >= 0].to(values.device)])
        return chosen

    def _grid(self, source: Tensor, size: tuple[int, int], side: int) -> TokenGrid:
        tiles = self._tile_shape(size)
        tile, patch = source // side**2, source % side**2
        is_patch, is_tile = source >= 0, source >= side**2
        first = tile - 1  # tiles begin behind the whole image
        row = torch.where(is_tile, first // tiles[1] * side + patch // side, patch // side)
        column = torch.where(is_tile, first % tiles[1] * side + patch % side, patch % side)
        planes = [(side, side)]
        if bool(is_tile.any()):
            # margins were cut: rows and columns count from the first that is left
            row = torch.where(is_tile, row - row[is_tile].min(), row)
            column = torch.where(is_tile, column - column[is_tile].min(), column)
            planes.append((int(row[is_tile].max()) + 1, int(column[is_tile].max()) + 1))
        nowhere = torch.full_like(source, NOWHERE)
        return TokenGrid(
            planes=tuple(planes),
            plane=torch.where(is_patch, is_tile.long(), nowhere),
            row=torch.where(is_patch, row, nowhere),
            column=torch.where(is_patch, column, nowhere),
            tile=torch.where(is_patch, tile, nowhere),
            tiles=tiles if len(planes) > 1 else (0, 0),
        )

    def _sources(self, size: tuple[int, int], inputs: ImageInputs) -> Tensor:
        """Place among an image's tiles x patches of each token, NOWHERE for newlines."""
        side = self._side()
        count = image_size_to_num_patches(list(size), self.config.image_grid_pinpoints, self._tile_px())
        places = torch.arange(count * side**2, dtype=torch.float64).view(count, side**2, 1)
        packed, _ = self.core.model.pack_image_features(
            [places],
            [list(size)],
            vision_feature_select_strategy=self._strategy(inputs),
            image_newline=torch.tensor([float(NOWHERE)], dtype=torch.float64),
        )
        return packed[0][:, 0].long()

    def _tiles(self, inputs: ImageInputs) -> list[int]:
        """Tiles of each image, the whole one included."""
        pins, px = self.config.image_grid_pinpoints, self._tile_px()
        return [image_size_to_num_patches(size, pins, px) for size in inputs["image_sizes"].tolist()]

    def _tile_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        return get_anyres_image_grid_shape(list(size), self.config.image_grid_pinpoints, self._tile_px())

    def _tile_px(self) -> int:
        return self.config.vision_config.image_size

    def _side(self) -> int:
        return self._tile_px() // self.config.vision_config.patch_size


class QwenLayout(Layout):
    """Qwen2-VL and Qwen2.5-VL: images of any shape; a token is a square of patches, and its score is their mean."""

    def feature_layer(self, inputs: ImageInputs) -> int:
        """The last layer, or in Qwen2.5-VL the last that sees the whole image."""
        whole = getattr(self.config.vision_config, "fullatt_block_indexes", None)
        return whole[-1] if whole else len(self.blocks) - 1

    def unread(self, inputs: ImageInputs, *, above: int) -> list[nn.Module]:
        """None: the last layer's output is read."""
        return []

    def early_layer(self) -> int:
        """The early layer, or in Qwen2.5-VL the first that sees the whole image (VScan does so too)."""
        whole = getattr(self.config.vision_config, "fullatt_block_indexes", None)
        return whole[0] if whole else super().early_layer()

    def grids(self, inputs: ImageInputs) -> list[TokenGrid]:
        """See `Layout`; one plane a frame, though an image has one frame only."""
        return [self._frames(*thw) for thw in inputs["image_grid_thw"].tolist()]

    def pixels(self, inputs: ImageInputs) -> list[Tensor]:
        """See `Layout`."""
        return list(inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist()))

    def layer_scores(self, tap: dict[str, Tensor], inputs: ImageInputs, around: Sequence[Tensor]) -> LayerScores:
        """See `Layout`; queries and keys are rotated first, as the layer does itself."""
        heads = self.config.vision_config.num_heads
        query, key, _ = rearrange(tap[vision.BOTH], "s (three k e) -> three s k e", three=3, k=heads)
        metric = key.float().mean(dim=1)
        query, key = apply_rotary_pos_emb_vision(query, key, *around)
        # frames do not see each other, but an image is one frame
        attention = scores.mean_attention(query, key, inputs["image_grid_thw"].prod(-1).tolist())
        both = torch.cat([attention[:, None], metric], dim=1)
        by_image = self.by_image(both[None], inputs)
        return LayerScores([own[:, 0] for own in by_image], [own[:, 1:] for own in by_image])

    def by_image(self, values: Float[Tensor, "1 s c"], inputs: ImageInputs) -> list[Float[Tensor, "p c"]]:
        """See `Layout`; the tower's rows are squares of patches, in Qwen2.5-VL sorted by window."""
        merge = self.config.vision_config.spatial_merge_size
        tokens = rearrange(values[0], "(p m) c -> p m c", m=merge**2).mean(dim=1)
        grid = inputs["image_grid_thw"]
        if hasattr(self.config.vision_config, "window_size"):
            tokens = tokens[self._token_order(grid).to(tokens.device)]
        return list(tokens.split((grid.prod(-1) // merge**2).tolist()))

    def _token_order(self, grid_thw: Tensor) -> Tensor:
        """Place among the rows of Qwen2.5-VL's tower of each token, counted row by row."""
        config = self.config.vision_config
        windows, _ = get_vision_window_index(
            grid_thw,
            spatial_merge_size=config.spatial_merge_size,
            window_size=config.window_size,
            patch_size=config.patch_size,
        )
        return torch.argsort(windows)

    def _frames(self, frames: int, rows: int, columns: int) -> TokenGrid:
        merge = self.config.vision_config.spatial_merge_size
        one = TokenGrid.plain(rows // merge, columns // merge)
        plane = torch.arange(frames).repeat_interleave(len(one))
        row, column = one.row.repeat(frames), one.column.repeat(frames)
        return TokenGrid(one.planes * frames, plane, row, column, tile=torch.zeros_like(plane))


class GemmaLayout(Layout):
    """Gemma 3: squares of patches are pooled to a token, and their scores with them."""

    def feature_layer(self, inputs: ImageInputs) -> int:
        """The last."""
        return len(self.blocks) - 1

    def unread(self, inputs: ImageInputs, *, above: int) -> list[nn.Module]:
        """None: the last layer's output is read."""
        return []

    def grids(self, inputs: ImageInputs) -> list[TokenGrid]:
        """The pooled square."""
        side = math.isqrt(self.config.mm_tokens_per_image)
        return [TokenGrid.plain(side, side)] * len(inputs["pixel_values"])

    def by_image(self, values: Float[Tensor, "n s c"], inputs: ImageInputs) -> list[Float[Tensor, "p c"]]:
        """See `Layout`."""
        side = math.isqrt(self.config.mm_tokens_per_image)
        square = rearrange(values, "n (h w) c -> n c h w", h=math.isqrt(values.shape[1]))
        pooled = torch.nn.functional.adaptive_avg_pool2d(square, side)
        return list(rearrange(pooled, "n c h w -> n (h w) c"))


LAYOUTS: dict[str, type[Layout]] = {
    "llava": Layout,
    "llava_next": NextLayout,
    "qwen2_vl": QwenLayout,
    "qwen2_5_vl": QwenLayout,
    "gemma3": GemmaLayout,
}
"""Name of a family -> how its tokens lie; a family that is not here cannot be pruned."""


def finding_on_grid(finding: Float[Tensor, "h w"], grid: TokenGrid) -> Float[Tensor, " p"]:
    """The largest value of a map within each patch; a small lesion is not averaged away.

    Every plane shows the whole image, so the map is laid over each.
    """
    sizes = torch.tensor([rows * columns for rows, columns in grid.planes])
    widths = torch.tensor([columns for _, columns in grid.planes])
    planes = [torch.nn.functional.adaptive_max_pool2d(finding[None].float(), size)[0] for size in grid.planes]
    shown = grid.shown
    # place of each patch when planes are laid out row by row, one after the other
    places = (sizes.cumsum(0) - sizes)[shown.plane] + shown.row * widths[shown.plane] + shown.column
    return torch.cat([plane.flatten() for plane in planes])[places.to(finding.device)]
