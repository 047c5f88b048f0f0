"""A contrast between what a phrase says and the regions of an image, beside a loss over text.

After TaCo, the tri-attention context contrast of MedRPG (Chen et al., MICCAI 2023), for any encoder that reads patches
and words together. Two things differ: what a phrase and a region both look at is told by likeness of states and not by
the encoder's attention rows, and there is no regression token, whose row is a third factor there.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

N_OTHERS = 5
TEMPERATURE = 0.1
MOST_SHARED = 0.5
"""Overlap from which on another region is the same one."""


def patches_in(boxes: Float[Tensor, "b 4"], side: int) -> Bool[Tensor, "b p"]:
    """Which patches of a square grid a box touches, row by row.

    Args:
        boxes: x0, y0, x1, y1 as fractions of the image.
        side: patches each way; p is their number.

    Example:
        >>> patches_in(torch.tensor([[0.0, 0.5, 0.4, 1.0]]), 2).tolist()
        [[False, False, True, False]]
    """
    low = torch.arange(side, device=boxes.device) / side
    across = (boxes[:, :1] < low + 1 / side) & (boxes[:, 2:3] > low)
    down = (boxes[:, 1:2] < low + 1 / side) & (boxes[:, 3:] > low)
    return rearrange(down[:, :, None] & across[:, None, :], "b h w -> b (h w)")


def other_regions(region: Bool[Tensor, "b p"], n: int = N_OTHERS) -> Bool[Tensor, "b n p"]:
    """Regions of the same shape at other places, drawn at random; they share less than half with the first.

    Where too few places do, those follow that share least. A region that fits in no other place gets itself, and then a
    contrast teaches nothing.

    Args:
        region: patches of a square grid, at least one in each row.
        n: how many.
    """
    side = round(region.shape[1] ** 0.5)
    grid = rearrange(region, "b (h w) -> b h w", h=side)
    moved = []
    for one in grid:
        rows, columns = one.any(dim=1).nonzero()[:, 0], one.any(dim=0).nonzero()[:, 0]
        shape = one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = shape.shape
        places = [(top, left) for top in range(side - height + 1) for left in range(side - width + 1)]
        there = one.new_zeros(len(places), side, side)
        for place, (top, left) in enumerate(places):
            there[place, top : top + height, left : left + width] = shape
        shared = (there & one).flatten(1).sum(dim=1) / (there | one).flatten(1).sum(dim=1)
        if len(places) > 1:  # its own place would be a wrong answer that is right
            there, shared = there[shared < 1], shared[shared < 1]
        order = torch.randperm(len(there), device=region.device)
        excess = shared[order].masked_fill(shared[order] < MOST_SHARED, 0.0)
        order = order[torch.sort(excess, stable=True).indices]
        moved.append(there[order[torch.arange(n, device=region.device) % len(order)]].flatten(1))
    return torch.stack(moved)


def region_phrase_contrast(
    states: Float[Tensor, "b s d"],
    patches: Int[Tensor, "b p"],
    words: Bool[Tensor, "b s"],
    region: Bool[Tensor, "b p"],
    others: Bool[Tensor, "b n p"],
) -> Float[Tensor, ""]:
    """Sum over rows of the cross-entropy of the phrase's own region among regions of the same image, in nats.

    Args:
        states: what an encoder makes of patches and words.
        patches: places of the patches in `states`, row by row of the grid.
        words: places of the phrase, without padding, the frame of the prompt and what every prompt says.
        region: patches of what the phrase describes.
        others: patches of what it does not.
    """
    with torch.autocast(states.device.type, enabled=False):
        return _contrast(states.float(), patches, words, region, others)


def _contrast(wide: Tensor, patches: Tensor, words: Tensor, region: Tensor, others: Tensor) -> Tensor:
    seen = wide.gather(1, patches[..., None].expand(-1, -1, wide.shape[-1]))
    candidates = torch.cat([region[:, None], others], dim=1).float()
    regions = einsum(candidates / candidates.sum(dim=-1, keepdim=True), seen, "b n p, b p d -> b n d")
    phrase = einsum(words.float() / words.sum(dim=1, keepdim=True).clamp(min=1), wide, "b s, b s d -> b d")
    real = words.scatter(
        1, patches, torch.ones_like(patches, dtype=torch.bool)
    )  # padding and frame are looked at by neither
    hidden = torch.finfo(wide.dtype).min
    scale = wide.shape[-1] ** -0.5
    by_phrase = (einsum(phrase, wide, "b d, b s d -> b s") * scale).masked_fill(~real, hidden)
    by_region = (einsum(regions, wide, "b n d, b s d -> b n s") * scale).masked_fill(~real[:, None], hidden)
    both = (by_phrase.log_softmax(dim=-1)[:, None] + by_region.log_softmax(dim=-1)).softmax(dim=-1)
    context = einsum(both, wide, "b n s, b s d -> b n d")
    likeness = F.cosine_similarity(phrase[:, None] + context, regions + context, dim=-1) / TEMPERATURE
    return -likeness.log_softmax(dim=-1)[:, 0].sum()
