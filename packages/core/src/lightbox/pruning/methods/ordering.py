"""What methods share: the best of each image, even places on a grid, and mixing one into the other."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightbox.kernels.segment_select.op import segment_select
from lightbox.pruning.budgets import largest_remainder
from lightbox.pruning.types import TokenGrid, VisualBatch, offsets


def best(scores: Float[Tensor, " T"], sizes: Sequence[int], counts: Sequence[int]) -> Int[Tensor, " K"]:
    """Places of the `counts` highest scores of each piece, ascending; ties go to the lower place.

    Args:
        scores: float32.
        sizes: lengths of the pieces.
        counts: how many to take from each.
    """
    cu, k = packed_counts(sizes, counts, scores.device)
    return segment_select(scores, cu, k, sum(counts))[0]


def packed_counts(sizes: Sequence[int], counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Offsets of pieces and how many to take from each, as operators want them: int32 on their device."""
    return offsets(sizes).to(device), torch.tensor(list(counts), dtype=torch.int32, device=device)


def bands(size: int, parts: int) -> list[tuple[int, int]]:
    """Cut `size` into `parts` as even as whole numbers allow.

    Example:
        >>> bands(5, 2)
        [(0, 2), (2, 5)]
    """
    return [(part * size // parts, (part + 1) * size // parts) for part in range(parts)]


def cells(rows: int, columns: int, count: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Cut a plane into exactly `count` cells of about the same shape, row by row.

    Bands of rows first, near as many as a square cell asks for; a band is cut into as many cells as are its due.

    Returns:
        First and one past the last row and column of each cell.
    """
    n_bands = round((count * rows / columns) ** 0.5)
    n_bands = min(max(n_bands, -(-count // columns), 1), rows, count)
    heights = bands(rows, n_bands)
    widths = largest_remainder([end - start for start, end in heights], count, [columns] * n_bands)
    # a band of few rows could get no cell at all; each has at least one
    while 0 in widths:
        widths[widths.index(max(widths))] -= 1
        widths[widths.index(0)] += 1
    return [(height, width) for height, own in zip(heights, widths, strict=True) for width in bands(columns, own)]


def per_plane(grid: TokenGrid, count: int) -> list[int]:
    """Divide an image's count over its planes in proportion to their patches."""
    return largest_remainder(grid.patches_in, count, grid.patches_in)


def patch_cells(grid: TokenGrid, count: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " count"]]:
    """Cut an image into exactly `count` cells, each with the patch in its middle.

    Args:
        grid: of patches only.
        count: at least 1.

    Returns:
        Cell of each patch (-1 in a plane that gets none), and the middle patch of each cell, ascending.
    """
    cell_of = torch.full((len(grid),), -1)
    middles: list[int] = []
    for plane, own in enumerate(per_plane(grid, count)):
        if own == 0:
            continue
        here = grid.plane == plane
        rows, columns = grid.planes[plane]
        if int(here.sum()) < rows * columns:  # a plane with patches missing is cut as one line
            places = here.nonzero().flatten()
            for start, end in bands(len(places), own):
                cell_of[places[start:end]] = len(middles)
                middles.append(int(places[(start + end - 1) // 2]))
            continue
        places = torch.empty(rows, columns, dtype=torch.long)
        places[grid.row[here], grid.column[here]] = here.nonzero().flatten()
        labels, row, column = _plane_cells(rows, columns, own)
        cell_of[places] = labels + len(middles)
        middles += places[row, column].tolist()
    order = torch.tensor(middles).argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return torch.where(cell_of >= 0, rank[cell_of], -1), torch.tensor(middles)[order]


@lru_cache(maxsize=1024)
def _plane_cells(rows: int, columns: int, count: int) -> tuple[Int[Tensor, "h w"], Tensor, Tensor]:
    """The cell of each place of a plane, and row and column of each cell's middle; kept, images being of few sizes."""
    # in numpy: a cell at a time, tensors of a few numbers would cost more than the methods do
    labels = np.empty((rows, columns), dtype=np.int64)
    middles = []
    for cell, ((top, bottom), (left, right)) in enumerate(cells(rows, columns, count)):
        labels[top:bottom, left:right] = cell
        middles.append(((top + bottom - 1) // 2, (left + right - 1) // 2))
    row, column = torch.tensor(middles).T
    return torch.from_numpy(labels), row, column


def with_floor(
    scores: Float[Tensor, " T"], batch: VisualBatch, counts: Sequence[int], share: float
) -> Float[Tensor, " T"]:
    """Scores in which an even grid of `share` of each image's count comes first; the rest keeps its order."""
    return with_grid(scores, batch, [round(share * count) for count in counts], torch.inf)


def with_grid(
    scores: Float[Tensor, " T"], batch: VisualBatch, counts: Sequence[int], score: float
) -> Float[Tensor, " T"]:
    """Scores in which an even grid of that many tokens an image has one score."""
    places = [
        patch_cells(grid, count)[1] + start
        for start, grid, count in zip(batch.starts[:-1], batch.grids, counts, strict=True)
        if count
    ]
    return scores.index_fill(0, torch.cat(places).to(scores.device), score) if places else scores


def best_of(scores: Float[Tensor, " T"], pieces: Sequence[Int[Tensor, " p"]], counts: Tensor, total: int) -> Tensor:
    """Places of the best of pieces that are no ranges, ascending.

    Args:
        scores: float32.
        pieces: places of each piece, ascending; no place is in two.
        counts: how many to take from each, int32 on the device.
        total: their sum.
    """
    order = torch.cat(list(pieces))
    cu = offsets([len(piece) for piece in pieces]).to(scores.device)
    return order[segment_select(scores[order], cu, counts, total)[0]].sort().values
