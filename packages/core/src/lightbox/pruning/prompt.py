"""A prompt whose image tokens become fewer: one order of columns, applied to everything that stands beside the ids."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightbox.backbones.rows import IGNORED
from lightbox.errors import RequestError
from lightbox.pruning.positions import following, renumbered

BESIDE = ("input_ids", "inputs_embeds", "labels", "token_type_ids", "mm_token_type_ids")
"""Arguments with one entry a token along their second axis."""


@dataclass(frozen=True)
class Prompt:
    """A shortened prompt.

    Args:
        inputs: arguments of the model's forward that changed.
        order: b t', the column that each new column was.
        is_token: b t', False for padding.
        dropped: b, image tokens that each row lost.
        following: b, position of the token that comes next.
        length: columns before.
        rank: b t, the new column of each old one, or of the last one kept before it; for reading results by old place.
    """

    inputs: dict[str, Any]
    order: Int[Tensor, "b t"]
    is_token: Bool[Tensor, "b t"]
    dropped: Int[Tensor, " b"]
    following: Int[Tensor, " b"]
    length: int
    rank: Int[Tensor, "b t"]


def shortened(
    inputs: dict[str, Any],
    positions: Int[Tensor, "*axes b t"],
    is_image: Bool[Tensor, "b t"],
    is_kept: Bool[Tensor, " T"],
    *,
    mode: str,
    pad_id: int,
    n_dropped: list[int],
) -> Prompt:
    """Take the dropped image tokens out of every row, and fill rows up to the longest on the side of their padding.

    Padding is taken out as well and put back where rows need it, so a batch is as long as its longest row. Rows from
    which nothing goes stay column for column what they were.

    Args:
        inputs: arguments of the model's forward.
        positions: those that the tokens have in the whole prompt.
        is_image: True for the places of image tokens.
        is_kept: of all image tokens, row after row.
        mode: see `positions`.
        pad_id: stands in columns that are filled up; must not be the image token.
        n_dropped: image tokens that each row loses, known to the host.

    Raises:
        RequestError: a mask that is not one of tokens (4-D: a static cache makes it before the prompt is seen).
    """
    mask = inputs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise RequestError(
            f"attention_mask is {'a dictionary of masks' if isinstance(mask, dict) else f'{mask.ndim}-dimensional'}",
            "It was made for the whole prompt, as a static cache does, and a pruned prompt is shorter",
            "Generate with the default cache, and pass a mask of shape (batch, tokens)",
        )
    was_token = torch.ones_like(is_image) if mask is None else mask.bool()
    length = is_image.shape[1]
    is_left = _is_left(was_token)
    # masked_scatter and not an index: the counts stay on the device
    stays = was_token & torch.ones_like(is_image).masked_scatter(is_image, is_kept)
    if any(n_dropped):
        new_length = int(stays.sum(dim=1).max())
    else:
        new_length = length
    order = torch.argsort(stays.long() if is_left else (~stays).long(), dim=1, stable=True)
    order = order[:, length - new_length :] if is_left else order[:, :new_length]
    is_token = stays.gather(1, order)
    is_filled = ~is_token & was_token.gather(1, order)  # a dropped token's column, which is padding now
    new: dict[str, Any] = {}
    for name in BESIDE:
        value = inputs.get(name)
        if value is None:
            continue
        if value.ndim == 3:
            moved = value.gather(1, order[..., None].expand(-1, -1, value.shape[2]))
            # an embedding of the image token would be taken for a place that waits for a feature
            new[name] = moved.masked_fill(is_filled[..., None], 0)
        else:
            filler = {"input_ids": pad_id, "labels": IGNORED}.get(name, 0)
            new[name] = value.gather(1, order).masked_fill(is_filled, filler)
    # always there once something goes: without a mask, transformers takes gaps in positions for the ends of texts that
    # were packed into one row, and tokens would no longer see each other
    if mask is not None:
        new["attention_mask"] = is_token.to(mask.dtype)
    elif any(n_dropped):
        new["attention_mask"] = is_token.long()
    positions = positions.expand(*positions.shape[:-2], len(is_image), length)
    moved = positions.gather(-1, order.expand(*positions.shape[:-2], -1, -1))
    here = is_image.gather(1, order) & is_token
    new["position_ids"] = renumbered(moved, is_token, here, mode=mode)
    new["position_ids"] = new["position_ids"].masked_fill(is_filled, 0)
    first = (new_length - is_token.sum(dim=1))[:, None] if is_left else 0
    rank = (stays.long().cumsum(dim=1) - 1).clamp(min=0) + first
    dropped = (was_token & ~stays).sum(dim=1)
    return Prompt(new, order, is_token, dropped, following(new["position_ids"], is_token), length, rank)


def _is_left(is_token: Bool[Tensor, "b t"]) -> bool:
    """Whether rows are padded on the left; without padding too, so that the last column stays each row's last token."""
    return bool(is_token[:, -1].all())
