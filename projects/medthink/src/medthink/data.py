"""Item -> prompt and target -> token rows -> batch. The paper's idea is here: what the target says, in which order.

One table serves all strategies. A field is a piece of prompt or target; fields are tokenised one by one and joined,
which for tokenizers that split at spaces is the same as tokenising the joined text, and says where the rationale
lies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightbox.eval.answers import letter_of
from lightbox.losses.language import IGNORED
from medthink.items import Item


class Template(NamedTuple):
    """Names of the fields of an encoder input and of a decoder target, in order."""

    source: tuple[str, ...]
    target: tuple[str, ...]


FIELDS = {
    "question": "Question: {question}",
    "options": "Options: {options}",
    "given_rationale": "Solution: {rationale}",
    "ask_answer": "Answer:",
    "ask_rationale": "Solution:",
    "answer": "The answer is {answer}.",
    "then_answer": "Answer: The answer is {answer}.",
    "rationale": "{rationale}",
    "then_rationale": "Solution: {rationale}",
}
_ASK_ANSWER = ("question", "options", "ask_answer")
_ASK_RATIONALE = ("question", "options", "ask_rationale")
_GIVEN_RATIONALE = ("question", "options", "given_rationale", "ask_answer")
TEMPLATES = {
    "none": Template(_ASK_ANSWER, ("answer",)),
    "explanation": Template(_ASK_ANSWER, ("answer", "then_rationale")),
    "reasoning": Template(_ASK_RATIONALE, ("rationale", "then_answer")),
    "first_stage": Template(_ASK_RATIONALE, ("rationale",)),
    "second_stage": Template(_GIVEN_RATIONALE, ("answer",)),
    "reader": Template(_GIVEN_RATIONALE, ("answer",)),
}
CUT_FIRST = ("given_rationale", "rationale", "then_rationale", "question")
"""What is shortened, in this order, where a row is too long: never the options, the cue or the answer."""


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one item, each ending with the end-of-text token; `answer` is the answer's span in `target`."""

    source: list[int]
    target: list[int]
    answer: tuple[int, int]


class Batch(NamedTuple):
    """What the model sees. `vision` is None for the text-only reader."""

    input_ids: Int[Tensor, "b t"]
    attention_mask: Int[Tensor, "b t"]
    labels: Int[Tensor, "b n"]
    vision: Float[Tensor, "b p c"] | None


def fields_of(item: Item, names: Sequence[str]) -> list[tuple[str, str]]:
    """The named fields of an item as (name, text); an open question has no options, an empty rationale no field."""
    values = {
        "question": item.question,
        "options": " ".join(f"({letter_of(place)}) {option}" for place, option in enumerate(item.options)),
        "answer": f"({letter_of(item.answer_index)})" if item.is_closed else item.answer,
        "rationale": item.rationale,
    }
    dropped = [] if item.is_closed else ["options"]
    dropped += [] if item.rationale else ["rationale", "then_rationale"]
    return [(name, FIELDS[name].format(**values).strip()) for name in names if name not in dropped]


def texts_of(item: Item, method: str) -> tuple[str, str]:
    """Encoder input and decoder target of an item, as text."""
    template = TEMPLATES[method]
    source, target = (" ".join(text for _, text in fields_of(item, names)) for names in template)
    return source, target


def encode_items(
    items: Sequence[Item], method: str, tokenizer: PreTrainedTokenizerBase, *, source_tokens: int, target_tokens: int
) -> list[Row]:
    """Tokenise items under a strategy.

    Args:
        items: with the rationale that the strategy is to read or write.
        method: key of `TEMPLATES`.
        tokenizer: gives ids of a text; its end-of-text token ends every row.
        source_tokens, target_tokens: longest rows, the end token included.
    """
    template = TEMPLATES[method]
    fields = [(fields_of(item, template.source), fields_of(item, template.target)) for item in items]
    texts = sorted({text for pair in fields for part in pair for _, text in part})
    ids_of = dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    return [_row(*pair, ids_of, tokenizer.eos_token_id, source_tokens, target_tokens) for pair in fields]


def fitted_texts(
    items: Sequence[Item], method: str, tokenizer: PreTrainedTokenizerBase, *, source_tokens: int, target_tokens: int
) -> list[tuple[str, str]]:
    """Prompts and targets as text, shortened by the rule of `encode_items`, for models that tokenise by themselves.

    Args:
        items: with the rationale that the strategy is to read or write.
        method: key of `TEMPLATES`.
        tokenizer: counts; a field that is too long becomes the text of its first ids.
        source_tokens, target_tokens: longest texts, one token for the end included.
    """
    template = TEMPLATES[method]

    def shortened(item: Item, names: Sequence[str], limit: int) -> str:
        texts = fields_of(item, names)
        parts = [(name, tokenizer(text, add_special_tokens=False)["input_ids"]) for name, text in texts]
        kept = fitted(parts, limit - 1)
        words = [
            text if len(few) == len(ids) else str(tokenizer.decode(few))
            for (_, text), (_, ids), (_, few) in zip(texts, parts, kept, strict=True)
        ]
        return " ".join(word for word in words if word)

    return [
        (shortened(item, template.source, source_tokens), shortened(item, template.target, target_tokens))
        for item in items
    ]


def _row(
    source: list[tuple[str, str]],
    target: list[tuple[str, str]],
    ids_of: dict[str, list[int]],
    eos: int,
    source_tokens: int,
    target_tokens: int,
) -> Row:
    parts = fitted([(name, ids_of[text]) for name, text in target], target_tokens - 1)
    names = [name for name, _ in parts]
    place = next((index for index, name in enumerate(names) if name in ("answer", "then_answer")), None)
    begin = 0 if place is None else sum(len(ids) for _, ids in parts[:place])
    end = 0 if place is None else begin + len(parts[place][1])
    return Row(
        source=[*_joined(fitted([(name, ids_of[text]) for name, text in source], source_tokens - 1)), eos],
        target=[*_joined(parts), eos],
        answer=(begin, end),
    )


def fitted(parts: list[tuple[str, list[int]]], limit: int) -> list[tuple[str, list[int]]]:
    """Shorten fields from their ends, rationale first, then question, until at most `limit` ids are left."""
    for wanted in CUT_FIRST:
        excess = sum(len(ids) for _, ids in parts) - limit
        if excess > 0:
            parts = [(name, ids[: max(0, len(ids) - excess)] if name == wanted else ids) for name, ids in parts]
    return parts


def _joined(parts: list[tuple[str, list[int]]]) -> list[int]:
    return [token for _, ids in parts for token in ids]


def pad_rows(rows: Sequence[list[int]], pad: int, *, width: int = 0) -> Int[Tensor, "b t"]:
    """Rows as one tensor, padded on the right to the longest, or to `width` where that is more."""
    width = max(width, *(len(row) for row in rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long)


def label_rows(targets: Sequence[list[int]], *, pad_id: int, pads: str, width: int) -> Int[Tensor, "b n"]:
    """Targets as labels.

    Args:
        targets: token ids, ending with the end token.
        pad_id: the padding token.
        pads: "masked" gives pads the label -100, so they carry no loss; "official" keeps `pad_id` up to `width`
            slots, so they count as in the official code.
        width: slots of the official form.
    """
    return pad_rows(targets, pad_id, width=width) if pads == "official" else pad_rows(targets, IGNORED)


def make_collate(
    rows: Sequence[Row],
    images: Sequence[int],
    vision: Float[Tensor, "n p c"] | None,
    *,
    pad_id: int,
    pads: str = "masked",
    width: int = 0,
) -> Callable[[list[int]], Batch]:
    """The function that makes a batch of item indices.

    Args:
        rows: of all items.
        images: row of `vision` for each item.
        vision: features of all images, or None for text only.
        pad_id, pads, width: see `label_rows`.
    """

    def collate(indices: list[int]) -> Batch:
        input_ids = pad_rows([rows[i].source for i in indices], pad_id)
        return Batch(
            input_ids=input_ids,
            attention_mask=(input_ids != pad_id).long(),
            labels=label_rows([rows[i].target for i in indices], pad_id=pad_id, pads=pads, width=width),
            vision=None if vision is None else vision[[images[i] for i in indices]],
        )

    return collate


def decoded(batch: Batch, tokenizer: PreTrainedTokenizerBase, *, index: int = 0) -> list[tuple[str, str]]:
    """One example of a batch for the eye: ("source", text), then one (token, "loss" or "-") per target position."""
    source = tokenizer.decode(batch.input_ids[index], skip_special_tokens=True)
    pairs = [
        ("-" if label == IGNORED else tokenizer.convert_ids_to_tokens(label), "-" if label == IGNORED else "loss")
        for label in batch.labels[index].tolist()
    ]
    return [("source", source), *pairs]
