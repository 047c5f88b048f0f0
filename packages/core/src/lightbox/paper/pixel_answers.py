"""Answers and masks of many questions, task by task."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lightbox.paper.pixel_items import PixelItem

if TYPE_CHECKING:  # it imports torch
    from lightbox.paper.pixel_vlm import PixelVLM

Routed = Callable[[str], AbstractContextManager[object]]
"""Gives for a task the context within which its questions are answered, such as that of an oracle router."""
Answered = tuple[str, list[Float[np.ndarray, "h w"]]]
"""An answer, and the logits of its masks."""


def answer_by_task(
    model: "PixelVLM",
    items: Sequence[PixelItem],
    tasks: Sequence[str],
    *,
    answer_tokens: int,
    batch_size: int,
    routed: Routed = nullcontext,
) -> list[Answered]:
    """The answer to each item; a batch holds one task, so that a router that is told the task has one expert for it.

    Args:
        model: it is put in evaluation mode.
        items: without answers.
        tasks: of each item.
        answer_tokens: longest answer.
        batch_size: items at once.
        routed: see `Routed`.
    """
    model.eval()
    answers: dict[int, Answered] = {}
    for task in dict.fromkeys(tasks):
        places = [place for place, own in enumerate(tasks) if own == task]
        with routed(task):
            read = model.answer([items[k] for k in places], max_new_tokens=answer_tokens, batch_size=batch_size)
        answers |= {
            k: (" ".join(a.text.split()), [m.logits for m in a.masks]) for k, a in zip(places, read, strict=True)
        }
    return [answers[place] for place in range(len(items))]
