"""Greedy generation for many items, and what the text says: answer sentence and rationale."""

import re
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from medthink.data import encode_items, pad_rows
from medthink.items import Item
from medthink.model import MedThinkT5

_SOLUTION = re.compile(r"\s*\bsolution\s*:\s*", re.IGNORECASE)
_ANSWER = re.compile(r"\s*\banswer\s*:\s*", re.IGNORECASE)


def generate_texts(
    model: MedThinkT5,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    method: str,
    *,
    images: Sequence[int] | None,
    vision: Float[Tensor, "n p c"] | None,
    batch_size: int,
    max_new_tokens: int,
    source_tokens: int,
) -> list[str]:
    """Generate one text an item, in the order of the items.

    Items are sorted by length for batching, so padding is small; the result does not depend on it beyond rounding.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        items: with the rationale that the strategy reads, if it reads one.
        method: strategy.
        images: row of `vision` for each item; None for text only.
        vision: features.
        batch_size: items at once.
        max_new_tokens: longest text.
        source_tokens: longest input.
    """
    rows = encode_items(items, method, tokenizer, source_tokens=source_tokens, target_tokens=10**6)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].source))
    texts = [""] * len(rows)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        input_ids = pad_rows([rows[i].source for i in chunk], tokenizer.pad_token_id).to(model.device)
        seen = None if vision is None or images is None else vision[[images[i] for i in chunk]].to(model.device)
        is_text = (input_ids != tokenizer.pad_token_id).long()
        ids = model.generate_greedy(input_ids, is_text, seen, max_new_tokens=max_new_tokens)
        for index, text in zip(chunk, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[index] = " ".join(text.split())
    return texts


def rationale_in(text: str, method: str) -> str | None:
    """The rationale of a generated text; None for strategies that write none.

    Explanation: what follows the first "Solution:", "" where there is none. Reasoning: what precedes the last
    "Answer:", everything where there is none. Stage 1: everything.

    Example:
        >>> rationale_in("the answer is ( a ) . solution : it is clear .", "explanation")
        'it is clear .'
    """
    if method == "explanation":
        parts = _SOLUTION.split(text, maxsplit=1)
        return parts[1] if len(parts) == 2 else ""
    if method == "reasoning":
        cues = list(_ANSWER.finditer(text))
        return text[: cues[-1].start()] if cues else text
    return text if method == "first_stage" else None
