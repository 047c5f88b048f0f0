"""What pruning passes around: where tokens lie, what a method reads, what it keeps.

T counts the tokens of all images of a call together (packed), S images, K what is kept. Packed tensors are cut into
images by `counts`, which the host knows, so nothing waits for a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ImageInputs = Mapping[str, Any]
"""Arguments of a model's `get_image_features`, by name."""
NOWHERE = -1
"""Row, column, plane and tile of a token that shows no patch (class token, end of a row of tiles)."""


@dataclass(frozen=True)
class TokenGrid:
    """Where each token of one image lies, in the order in which the language model reads them.

    A plane is a picture that is cut into patches: LLaVA-NeXT has the small whole image as plane 0 and the tiles, joined
    and without their margins, as plane 1; every other family has one.

    Args:
        planes: rows and columns of each plane, in tokens.
        plane: n, place in `planes`, NOWHERE for a token without a patch.
        row, column: n, within the plane; NOWHERE likewise.
        tile: n, 0 for plane 0 and 1 + the place of the tile for tiles, row by row; NOWHERE likewise.
        tiles: rows and columns of tiles; (0, 0) without.
    """

    planes: tuple[tuple[int, int], ...]
    plane: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    column: Int[Tensor, " n"]
    tile: Int[Tensor, " n"]
    tiles: tuple[int, int] = (0, 0)

    @classmethod
    def plain(cls, rows: int, columns: int, *, before: int = 0, skipped: int = 0) -> "TokenGrid":
        """One plane, row by row.

        Args:
            rows, columns: of the plane.
            before: tokens without a patch in front (a class token that was kept).
            skipped: patches that the model leaves out in front (a tower without a class token under "default").
        """
        place = torch.cat([torch.full((before,), NOWHERE), torch.arange(skipped, rows * columns)])
        is_patch = place >= 0
        return cls(
            planes=((rows, columns),),
            plane=torch.where(is_patch, 0, NOWHERE),
            row=torch.where(is_patch, place // columns, NOWHERE),
            column=torch.where(is_patch, place % columns, NOWHERE),
            tile=torch.where(is_patch, 0, NOWHERE),
        )

    def __len__(self) -> int:
        return len(self.plane)

    @cached_property
    def is_patch(self) -> Bool[Tensor, " n"]:
        """True for tokens that show a patch; only these are chosen from."""
        return self.plane != NOWHERE

    @cached_property
    def patches(self) -> Int[Tensor, " p"]:
        """Places of the tokens that show a patch, ascending."""
        return self.is_patch.nonzero().flatten()

    @cached_property
    def patches_in(self) -> list[int]:
        """Patches of each plane."""
        return torch.bincount(self.plane[self.is_patch], minlength=len(self.planes)).tolist()

    @cached_property
    def shown(self) -> "TokenGrid":
        """The same without the tokens that show no patch; what methods see."""
        kept = self.patches
        return TokenGrid(self.planes, self.plane[kept], self.row[kept], self.column[kept], self.tile[kept], self.tiles)


@dataclass(frozen=True)
class VisualBatch:
    """What a method reads: the patches of S images, packed; tokens without a patch are not in it.

    Args:
        x: T d, projected features as the language model reads them; with gradient in training, for methods that merge.
        counts: patches of each image; they sum to T.
        grids: one an image, of patches only.
        groups: places of images that belong together (the slices of a stack): those of one prompt, in order.
        keys: S, int64, a number that follows from an image's pixels and nothing else.
        attention: T, how much the tower looks at a patch in the layer that the projector reads, in [0, 1]: the class
            token's look, or the mean of all patches where there is none. None where the method did not ask for it.
        early_attention: T, the same in an early layer.
        metric: T e, keys of that layer, mean over heads.
        finding: T, in [0, 1], the finding map over patches.
        regions: per image, lists of the patches that each connected region of the finding map touches, the one with
            the highest value first.
        relevance: T, in [0, 1], of a patch for a question, from the caller.
    """

    x: Float[Tensor, "T d"]
    counts: Sequence[int]
    grids: Sequence[TokenGrid]
    groups: Sequence[Sequence[int]]
    keys: Int[Tensor, " S"]
    attention: Float[Tensor, " T"] | None = None
    early_attention: Float[Tensor, " T"] | None = None
    metric: Float[Tensor, "T e"] | None = None
    finding: Float[Tensor, " T"] | None = None
    regions: Sequence[Sequence[Sequence[int]]] | None = None
    relevance: Float[Tensor, " T"] | None = None

    @cached_property
    def cu(self) -> Int[Tensor, " S+1"]:
        """Where each image begins in packed tensors, and T at the end; int32 on the device of `x`."""
        return offsets(self.counts).to(self.x.device)

    @cached_property
    def starts(self) -> list[int]:
        """The same for the host."""
        return offsets(self.counts).tolist()


@dataclass(frozen=True)
class Selection:
    """What a method keeps.

    Args:
        idx: K, int64, places in packed patches, ascending within an image and over images.
        counts: kept patches of each image; they sum to K.
        merged: K d, features in the place of x[idx], for methods that merge; gradient flows where x has one.
        scores: T, float32, what patches were chosen by; None for methods that choose in sequence.
    """

    idx: Int[Tensor, " K"]
    counts: Sequence[int]
    merged: Float[Tensor, "K d"] | None = None
    scores: Float[Tensor, " T"] | None = field(default=None, repr=False)


def offsets(counts: Sequence[int]) -> Int[Tensor, " S+1"]:
    """Where pieces of these lengths begin, and their sum at the end; int32.

    Example:
        >>> offsets([2, 3]).tolist()
        [0, 2, 5]
    """
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)
    return torch.tensor(ends, dtype=torch.int32)
