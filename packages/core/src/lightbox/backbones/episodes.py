"""Rows that are read once and continued many times: prompts shared by a group, rows that leave, and exact ids to learn.

`Backbone.generate` and `continued` do the turns. What stands here is for conversations that a policy has with an
environment: several begin with one prompt, some end before others, and all are learnt from as they were said.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import torch
from PIL import Image
from transformers import Cache

from lightbox.backbones import rows
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Conversation
from lightbox.backbones.generation import Generated
from lightbox.backbones.rows import IGNORED, UNLIMITED, VlmBatch

BESIDE = "beside"
"""Attribute of a cache."""


class Beside(Protocol):
    """What is known of a cache row by row."""

    def of_rows(self, index: list[int]) -> Self:
        """The same of some rows, or of rows that are repeated."""
        ...


def put_beside(cache: Cache, rows_of_it: Beside) -> None:
    """Keep what is known of a cache with it, so that it follows where rows are repeated or leave, and into copies."""
    vars(cache)[BESIDE] = rows_of_it  # transformers has no place for it


def beside(cache: Cache) -> Any:
    """What `put_beside` kept; None where nothing was."""
    return vars(cache).get(BESIDE)


def _follow(cache: Cache, index: Sequence[int]) -> None:
    rows_of_it = beside(cache)
    if rows_of_it is not None:
        put_beside(cache, rows_of_it.of_rows(list(index)))


@torch.no_grad()
def shared_prompts(backbone: Backbone, conversations: Sequence[Conversation], group: int) -> VlmBatch:
    """A batch to be answered, of `group` rows a conversation, whose cache holds all tokens but the last.

    Each prompt is read once, with its images, and its keys and values are repeated.

    Args:
        backbone: a causal family.
        conversations: to be answered, n of them.
        group: answers to each, >= 1.

    Returns:
        Row g of conversation i at i * group + g, on the model's device.

    Raises:
        RequestError: as `prepare_conversations`.
    """
    batch = backbone.prepare_conversations(conversations, max_tokens=UNLIMITED, padding="left").to(backbone.device)
    tokens = {name: batch.inputs[name] for name in ("input_ids", "attention_mask", backbone.TYPE_FIELD) if name}
    positions = backbone.positions(tokens, batch.grids)
    placed = {} if positions is None else {"position_ids": positions}
    # a bare forward would count padding in, where `generate` counts by the mask
    counted = {"position_ids": (tokens["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)}
    inputs = backbone.inputs_of(batch) | {name: value[..., :-1] for name, value in (tokens | counted | placed).items()}
    cache = backbone.core(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(group)
    again = [place for place in range(len(conversations)) for _ in range(group)]
    _follow(cache, again)
    return VlmBatch(
        {name: value[again] for name, value in tokens.items()}
        | {name: value[:, again] for name, value in placed.items()},
        conversations=[conversations[place] for place in again],
        cache=cache,
        grids=None if batch.grids is None else [batch.grids[place] for place in again],
    )


def some_rows(generated: Generated, going: Sequence[int]) -> Generated:
    """Answers with memory, of the rows that go on; the memory shrinks in place, so the others cannot be continued.

    Args:
        generated: with memory.
        going: places of rows, at least one, in order.
    """
    memory, index = generated.memory, list(going)
    if len(index) == len(generated.ids):
        return generated
    memory.cache.batch_select_indices(torch.tensor(index, device=generated.ids.device))
    _follow(memory.cache, index)
    kept = replace(
        memory,
        conversations=[memory.conversations[row] for row in index],
        tokens={name: value[index] for name, value in memory.tokens.items()},
        grids=None if memory.grids is None else [memory.grids[row] for row in index],
    )
    fields: dict[str, Any] = {name: getattr(generated, name)[index] for name in ("ids", "is_token", "logps")}
    return Generated([generated.texts[row] for row in index], **fields, memory=kept)


def batch_of_ids(
    backbone: Backbone,
    ids: Sequence[Sequence[int]],
    is_label: Sequence[Sequence[bool]],
    images: Sequence[Sequence[Image.Image]],
) -> VlmBatch:
    """Rows of exact ids as a batch for a loss, on the CPU, padded on the right.

    Text that is decoded and encoded again may come back as other ids, and what a policy said is then not what it chose.

    Args:
        backbone: a causal family, of whose tokenizer the ids are.
        ids: of each row, with an image token for each place of an image's.
        is_label: whether a token is in the loss, beside the ids.
        images: of each row, in order; one that stands in several places, compared by identity, is encoded once.
    """
    distinct = list({id(image): image for row in images for image in row}.values())
    order = {id(image): place for place, image in enumerate(distinct)}
    pixels = backbone.read_images(distinct) if distinct else {}
    fields, shared = backbone.image_fields(pixels, [order[id(image)] for row in images for image in row], None)
    kinds = {backbone.TYPE_FIELD: backbone.image_token_id} if backbone.TYPE_FIELD else {}
    own = [
        {"input_ids": list(row), "attention_mask": [1] * len(row)}
        | {name: [int(i == token) for i in row] for name, token in kinds.items()}
        for row in ids
    ]
    labels = [
        [i if is_in else IGNORED for i, is_in in zip(row, is_in_loss, strict=True)]
        for row, is_in_loss in zip(ids, is_label, strict=True)
    ]
    inputs = rows.padded(own, backbone.tokenizer.pad_token_id, side="right") | fields
    return VlmBatch(inputs, rows.stacked(labels, IGNORED, side="right"), shared=shared)
