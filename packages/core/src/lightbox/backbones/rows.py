"""Token rows of unequal length -> one padded batch, with labels that cover supervised answers and their end tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor

from lightbox.backbones.conversation import Conversation
from lightbox.errors import RequestError
from lightbox.losses.language import IGNORED

UNLIMITED = 1 << 30  # a number, so that lengths compare without a case for None
Row = dict[str, list[int]]
"""One row without padding: the ids, and whatever else the model reads one value a token of."""


@dataclass(frozen=True)
class SharedImages:
    """Images that stand in several places, or whose features are there already.

    Args:
        pixels: what the tower reads of each distinct image.
        index: distinct image of each place, row after row.
        features: p d of each distinct image, as the language model reads them; None encodes `pixels`.
    """

    pixels: dict[str, Tensor]
    index: list[int]
    features: list[Tensor] | None = None


@dataclass(frozen=True)
class VlmBatch:
    """What a model sees.

    Args:
        inputs: keyword arguments of the model's forward, images included unless they are `shared`.
        labels: b t, -100 outside supervised answers and their end tokens. A causal model has them beside `input_ids`,
            the label of a position being its own token; an encoder-decoder has them beside `decoder_input_ids`, the
            label of a position being the token after it. None where rows are to be answered.
        shared: see `SharedImages`; None where every image stands in one place, in `inputs`.
        conversations: what the rows were made of, where they are to be answered; empty for rows with labels.
        cache: keys and values of what was read before, for a batch that continues.
        grids: size in patches of each row's images, m 3, for a batch that continues in a family that needs it.
    """

    inputs: dict[str, Tensor]
    labels: Int[Tensor, "b t"] | None = None
    shared: SharedImages | None = None
    conversations: list[Conversation] = field(default_factory=list)
    cache: Any = None
    grids: list[Tensor] | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on a device."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device, non_blocking=non_blocking) for name, value in tensors.items()}

        shared = self.shared
        if shared is not None:
            features = None if shared.features is None else [tokens.to(device) for tokens in shared.features]
            shared = replace(shared, pixels=moved(shared.pixels), features=features)
        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        return replace(self, inputs=moved(self.inputs), labels=labels, shared=shared)


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


def check_lengths(lengths: Sequence[tuple[int, int]], *, limit: int, context: int | None, is_joined: bool) -> None:
    """Refuse a row that is longer than what the user allows or the model has positions for.

    Args:
        lengths: tokens of each row's prompt, image tokens included, and of its targets, end tokens included.
        limit: what the user allows.
        context: what the model has positions for; None is no limit.
        is_joined: True where prompt and target make one row.

    Raises:
        RequestError: with the item and its lengths.
    """
    # the smaller counts: a larger setting does not make positions
    most = limit if context is None else min(limit, context)
    for index, (prompt, target) in enumerate(lengths):
        if (prompt + target if is_joined else max(prompt, target)) > most:
            bound = "" if context is None else f", and the model's context is {context}"
            raise RequestError(
                f"Item {index} has {prompt} tokens in the prompt, image included, and {target} in the target",
                f"The limit here is {limit}{bound}; a row that is cut would teach another text",
                "Shorten the text, use a smaller image, or raise the limit within the context",
            )
