"""Claim T4: a text-only reader answers from rationales, with and without their answer-bearing words. No torch.

The reader is the same T5 without vision, trained on reference rationales in the template of stage 2. The paper's
judge is a closed language model with the image; a fixed reader trained here is what can be repeated.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from medthink import rationales, stages
from medthink.items import Item

NOTHING, REFERENCE = "no_rationale", "reference"
GENERATED = {"generated": "explanation", "generated_reasoning": "reasoning"}
"""Condition -> the arm whose rationales of the test items are read."""


def reader_items(items: Sequence[Item], *, masks_answer_words: bool) -> list[Item]:
    """Items as the reader gets them: answer-bearing words masked or not."""
    if not masks_answer_words:
        return list(items)
    return [dataclasses.replace(item, rationale=rationales.masked(item, item.rationale)) for item in items]


def reader_conditions(
    items: Sequence[Item], needs: Mapping[str, Path], *, masks_answer_words: bool
) -> dict[str, list[Item]]:
    """Test items by condition: no rationale, the reference, what Explanation wrote, what Reasoning wrote."""
    texts = {
        NOTHING: [dataclasses.replace(item, rationale="") for item in items],
        REFERENCE: list(items),
    }
    for condition, arm in GENERATED.items():
        texts[condition] = stages.with_generated(items, stages.read_generated(needs, arm, "image"))
    return {
        condition: reader_items(changed, masks_answer_words=masks_answer_words) for condition, changed in texts.items()
    }
