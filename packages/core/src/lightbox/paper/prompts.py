"""Prompts and targets made of named fields, shortened where they are too long and never where it matters. No torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers takes seconds to import, and arms without a model need no tokenizer
    from transformers import PreTrainedTokenizerBase

Fields = list[tuple[str, str]]
"""A text in pieces, as (name, text)."""


def joined(fields: Fields) -> str:
    """The whole text, one space between fields."""
    return " ".join(text for _, text in fields)


def fitted_texts(
    rows: Sequence[tuple[Fields, Fields]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    cut_first: Sequence[str],
    source_tokens: int,
    target_tokens: int,
) -> list[tuple[str, str]]:
    """Prompts and targets as text, shortened where they are too long.

    Args:
        rows: fields of the prompt and of the target of each sample.
        tokenizer: a fast one; counts, and says where in a field that is too long the last id ends that fits.
        cut_first: names of fields that may be shortened, in this order.
        source_tokens, target_tokens: longest texts in tokens, one for the end included.
    """
    limits = (source_tokens - 1, target_tokens - 1)
    every_text = sorted({text for row in rows for fields in row for _, text in fields})
    # each distinct text is tokenised once, all in one call: questions and options repeat
    encoded = tokenizer(every_text, add_special_tokens=False, return_offsets_mapping=True)
    ids_of = dict(zip(every_text, encoded["input_ids"], strict=True))
    # not decoded again: a sign that the tokenizer lacks would become a control token
    spans_of = dict(zip(every_text, encoded["offset_mapping"], strict=True))

    def shortened(fields: Fields, limit: int) -> str:
        pieces = fitted([(name, ids_of[text]) for name, text in fields], limit, cut_first=cut_first)
        words = [
            text if len(ids) == len(ids_of[text]) else text[: spans_of[text][len(ids) - 1][1] if ids else 0].strip()
            for (_, text), (_, ids) in zip(fields, pieces, strict=True)
        ]
        return " ".join(word for word in words if word)

    pairs = [[shortened(fields, limit) for fields, limit in zip(row, limits, strict=True)] for row in rows]
    return [(source, target) for source, target in pairs]


def fitted(pieces: list[tuple[str, list[int]]], limit: int, *, cut_first: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Shorten named runs of ids from their ends, in the order of `cut_first`, until at most `limit` ids are left."""
    for name_to_cut in cut_first:
        excess = sum(len(ids) for _, ids in pieces) - limit
        if excess > 0:
            pieces = [(name, ids[: max(0, len(ids) - excess)] if name == name_to_cut else ids) for name, ids in pieces]
    return pieces
