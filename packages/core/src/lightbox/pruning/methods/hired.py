"""HiRED (arXiv 2408.10945): tiles get tokens by what an early layer sees of them in the whole image.

Only LLaVA-NeXT has tiles; elsewhere this is `cls_topk`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightbox.kernels.segment_select.op import allocate_budget
from lightbox.pruning.budgets import largest_remainder
from lightbox.pruning.methods.ordering import best_of, with_floor
from lightbox.pruning.types import Selection, TokenGrid, VisualBatch

STRIPS = "reference_code"


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Divide an image's count over its tiles and keep the best of each.

    The whole image gets `options.alpha` of it. A tile's part of the rest is in proportion to the attention that an
    early layer's class token gives to the tile's place in the whole image, found through the margins that were cut.

    `compat="reference_code"` cuts the whole image's attention into strips in reading order instead, as the released
    code does (its reshape takes rows for tiles): a lesion in one corner then sends half of its tokens elsewhere. The
    tokens which that code loses by rounding down are not lost here.

    Differs from the paper for towers without a class token, where the mean look of all patches takes its place.
    """
    scores = with_floor(batch.attention.float(), batch, counts, options.floor_uniform)
    pieces: list[Tensor] = []
    parts: list[Tensor] = []
    for number, (grid, count, start) in enumerate(zip(batch.grids, counts, batch.starts[:-1], strict=True)):
        tiles = grid.tiles[0] * grid.tiles[1]
        places = [(grid.tile == tile).nonzero().flatten().to(scores.device) + start for tile in range(tiles + 1)]
        pieces += places
        sizes = grid.patches_in
        first, rest = (count, 0) if tiles == 0 else largest_remainder([options.alpha, 1 - options.alpha], count, sizes)
        parts.append(torch.tensor([first], dtype=torch.int32, device=scores.device))
        if tiles:
            early = batch.early_attention[batch.starts[number] : batch.starts[number + 1]].float()
            weights = tile_weights(early[: sizes[0]], grid, is_strips=options.compat == STRIPS)
            caps = torch.tensor([len(own) for own in places[1:]], dtype=torch.int32, device=scores.device)
            parts.append(allocate_budget(weights, rest, caps))
    idx = best_of(scores, pieces, torch.cat(parts), sum(counts))
    return Selection(idx, counts, scores=scores)


def tile_weights(attention: Float[Tensor, " p"], grid: TokenGrid, *, is_strips: bool) -> Float[Tensor, " n"]:
    """Attention of the whole image that falls to each tile.

    Args:
        attention: of the patches of plane 0, row by row.
        grid: with tiles.
        is_strips: cut in reading order instead of by place.
    """
    (rows, columns), (tile_rows, tile_columns) = grid.planes
    tiles = grid.tiles[0] * grid.tiles[1]
    if is_strips:
        owner = torch.arange(rows * columns) * tiles // (rows * columns)
    else:
        tile_at = torch.empty(tile_rows, tile_columns, dtype=torch.long)
        on_tiles = grid.plane == 1
        tile_at[grid.row[on_tiles], grid.column[on_tiles]] = grid.tile[on_tiles] - 1
        # both planes show the whole image, so a place in one is the same share of the other
        row = (torch.arange(rows) * 2 + 1) * tile_rows // (2 * rows)
        column = (torch.arange(columns) * 2 + 1) * tile_columns // (2 * columns)
        owner = tile_at[row[:, None], column[None, :]].flatten()
    owner = owner.to(attention.device)
    # a product with 0 and 1, as an index_add on a GPU has no fixed order
    is_own = owner == torch.arange(tiles, device=attention.device)[:, None]
    return (attention.double() * is_own).sum(dim=1)
