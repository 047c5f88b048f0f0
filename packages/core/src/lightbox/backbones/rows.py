"""Token rows of unequal length -> one padded batch, with labels that cover the target and its end token only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.losses.language import IGNORED

TOKEN_FIELDS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor gives one value a token of; everything else is about images and is passed on as it is."""

UNLIMITED = 1 << 30  # a number, so that lengths compare without a case for None
Row = dict[str, list[int]]
"""One row without padding: the ids, and whatever else the model reads one value a token of."""


@dataclass(frozen=True)
class VlmBatch:
    """What a model sees.

    Args:
        inputs: keyword arguments of the model's forward, images included.
        labels: b t, -100 outside the target and its end token. A causal model has them beside `input_ids`, the label
            of a position being its own token; an encoder-decoder has them beside `decoder_input_ids`, the label of a
            position being the token after it. None where there is no target.
    """

    inputs: dict[str, Tensor]
    labels: Int[Tensor, "b t"] | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on a device."""
        inputs = {name: value.to(device, non_blocking=non_blocking) for name, value in self.inputs.items()}
        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        return replace(self, inputs=inputs, labels=labels)


def unpadded(encoded: Mapping[str, Tensor]) -> list[Row]:
    """Rows of a padded batch of prompts, by its attention mask."""
    is_token = encoded["attention_mask"].bool()
    names = [name for name in TOKEN_FIELDS if name in encoded]
    return [{name: encoded[name][i][is_token[i]].tolist() for name in names} for i in range(len(is_token))]


def extended(row: Row, ids: Sequence[int]) -> Row:
    """A row with `ids` behind it; they are read (mask 1) and of type 0, which is text."""
    rest = {name: values + [0] * len(ids) for name, values in row.items()}
    return rest | {
        "input_ids": row["input_ids"] + list(ids),
        "attention_mask": row["attention_mask"] + [1] * len(ids),  # read, though the processor never saw them
    }


def padded(rows: Sequence[Row], pad_id: int, *, side: str) -> dict[str, Tensor]:
    """Rows as tensors b t, padded to the longest with `pad_id`, and with 0 in every field but the ids."""
    return {
        name: stacked([row[name] for row in rows], pad_id if name == "input_ids" else 0, side=side) for name in rows[0]
    }


def stacked(rows: Sequence[Sequence[int]], filler: int, *, side: str) -> Int[Tensor, "b t"]:
    """Lists of unequal length as one tensor, filled on `side` ("right" or "left")."""
    width = max(len(row) for row in rows)
    parts = [[filler] * (width - len(row)) for row in rows]
    pairs = zip(rows, parts, strict=True)
    return torch.tensor([[*row, *part] if side == "right" else [*part, *row] for row, part in pairs])


def labelled(rows: Sequence[Row], targets: Sequence[Sequence[int]], *, side: str) -> Int[Tensor, "b t"]:
    """Labels of causal rows that end with their targets: the target's ids at its own positions, -100 elsewhere."""
    labels = [
        [IGNORED] * (len(row["input_ids"]) - len(target)) + list(target)
        for row, target in zip(rows, targets, strict=True)
    ]
    return stacked(labels, IGNORED, side=side)


def shifted_right(labels: Int[Tensor, "b t"], *, start_id: int, pad_id: int) -> Int[Tensor, "b t"]:
    """What a decoder reads so that position t predicts label t: the start token, then the labels before t."""
    before = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, pad_id)  # no table has a row -100
    return torch.cat([labels.new_full((len(labels), 1), start_id), before], dim=1)


def aligned(labels: Int[Tensor, "b t"], *, is_encoder_decoder: bool) -> Int[Tensor, "b t"]:
    """Labels beside the positions that predict them: one to the left for a causal row, as they are for a decoder."""
    if is_encoder_decoder:
        return labels
    return torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], dim=1)


def check_counts(images: Sequence[Any] | None, prompts: Sequence[str], targets: Sequence[str] | None) -> None:
    """Refuse an empty batch, and one whose images, prompts and targets are not as many.

    Raises:
        RequestError: with the counts.
    """
    counts = {"prompts": len(prompts)}
    counts |= {} if images is None else {"images": len(images)}
    counts |= {} if targets is None else {"targets": len(targets)}
    if len(set(counts.values())) != 1 or not prompts:
        raise RequestError(
            ", ".join(f"{count} {name}" for name, count in counts.items()),
            "A batch has at least one item, and one of each an item",
            "Give as many of each; repeat an image that serves several prompts",
        )


def check_lengths(
    prompts: Sequence[Row],
    targets: Sequence[list[int]] | None,
    *,
    max_tokens: int,
    context_tokens: int | None,
    is_joined: bool,
) -> None:
    """Refuse a row that is longer than what the user allows or the model has positions for.

    Args:
        prompts: with image tokens.
        targets: with end tokens, or None.
        max_tokens: what the user allows.
        context_tokens: what the model has positions for; None is no limit.
        is_joined: True where prompt and target make one row.

    Raises:
        RequestError: with the item and its lengths.
    """
    # the smaller counts: a larger setting does not make positions
    limit = max_tokens if context_tokens is None else min(max_tokens, context_tokens)
    for index, row in enumerate(prompts):
        prompt, target = len(row["input_ids"]), len(targets[index]) if targets is not None else 0
        if (prompt + target if is_joined else max(prompt, target)) > limit:
            context = "" if context_tokens is None else f", and the model's context is {context_tokens}"
            raise RequestError(
                f"Item {index} has {prompt} tokens in the prompt, image included, and {target} in the target",
                f"The limit here is {max_tokens}{context}; a row that is cut would teach another text",
                "Shorten the text, use a smaller image, or raise the limit within the context",
            )
