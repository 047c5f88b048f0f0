"""Positions of what is left. A gap costs nothing; a renumbered row costs grounding (GAP, arXiv 2506.21873).

`keep` leaves every token the position that it had, `compact` numbers what is left from the first on, and `keep_rank`
numbers it as closely but keeps the order of rows and columns that M-RoPE gives to an image. Without M-RoPE the last two
are one, since a selection keeps the order of tokens.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

MODES = ("keep", "keep_rank", "compact")


def renumbered(
    positions: Int[Tensor, "*axes b t"], is_token: Bool[Tensor, "b t"], is_image: Bool[Tensor, "b t"], *, mode: str
) -> Int[Tensor, "*axes b t"]:
    """Positions of rows that were shortened.

    Args:
        positions: those that the tokens had; 3 axes for M-RoPE, or 4 with the text's own in front.
        is_token: True for tokens, False for padding, whose positions stay as they are.
        is_image: True for tokens of images.
        mode: one of `MODES`.
    """
    if mode == "keep":
        return positions
    rank = (is_token.long().cumsum(-1) - 1).expand_as(positions)
    if mode == "compact" or positions.ndim == 2:
        return torch.where(is_token, rank, positions)
    new = positions.clone()
    has_text_axis = positions.shape[0] == 4
    if has_text_axis:
        new[0] = torch.where(is_token, rank[0], positions[0])
    axes = slice(int(has_text_axis), None)
    for row in range(positions.shape[1]):
        places = is_token[row].nonzero().flatten()
        new[axes, row, places] = _ranked(positions[axes, row, places], is_image[row, places])
    return new


def _ranked(positions: Int[Tensor, "3 t"], is_image: Bool[Tensor, " t"]) -> Int[Tensor, "3 t"]:
    """Text counts on by one; in an image each axis is numbered by rank, and text goes on behind the largest."""
    new, following = positions.clone(), 0
    changes = (is_image[1:] != is_image[:-1]).nonzero().flatten() + 1
    bounds = [0, *changes.tolist(), len(is_image)]
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        if is_image[start]:
            for axis in range(3):
                new[axis, start:end] = following + positions[axis, start:end].unique(return_inverse=True)[1]
        else:
            new[:, start:end] = following + torch.arange(end - start, device=new.device)
        following = int(new[:, start:end].max()) + 1
    return new


def following(positions: Int[Tensor, "*axes b t"], is_token: Bool[Tensor, "b t"]) -> Int[Tensor, " b"]:
    """Position of the token that comes next in each row: one more than the largest.

    A row with a fourth axis in front, the text's own count, is read without it: M-RoPE goes on behind the largest of
    time, row and column.
    """
    spatial = positions[1:] if positions.ndim == 3 and positions.shape[0] == 4 else positions
    largest = spatial.masked_fill(~is_token, -1).amax(dim=-1)
    return (largest.amax(dim=0) if largest.ndim == 2 else largest) + 1
