"""Which answer is rejected: one that the target model gave, or one that a language model picks or writes. No torch.

The paper asks GPT-4o for the sampled answer with the strongest conflict with the truth, and to write one where none is
clearly false. Its prompts are in figures only, so those here are our own.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightbox.chat import ChatModel
from lightbox.chat_json import ask_json, deciding
from lightbox.eval.answers import words_of
from lightbox.paper.stages import Result
from lightbox.readers.preference_audit import LEAKED

LEFT_OUT = "left_out"
"""Key of a result that says why there is no pair, though nothing failed."""
RULE = (
    "lowest F1 of words with the true answer; then the number of words nearest to its own, then the answer given most "
    "often, then the first; none that says every word of the true answer, or no other words than its own"
)
PROMPT = """You help to test whether a model looks at medical images. You get a question about an image, the true
answer and answers of that model, by number. Choose the answer that contradicts the true one most strongly. If none
clearly contradicts it, choose 0 and write a false answer: plausible, about as long as the true one, in the same style,
without a word about this task. Reply with one JSON object and nothing else, {"choice": NUMBER, "written": TEXT}; TEXT
is "" unless NUMBER is 0."""
_LEAKED = [re.compile(pattern, re.IGNORECASE) for pattern in LEAKED.values()]


class Picker(Protocol):
    """Anything that says which answer is rejected."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the choice."""
        ...

    def pick(self, question: str, truth: str, answers: Sequence[str]) -> Result:
        """`rejected` and how it was found, or `LEFT_OUT` and why there is none."""
        ...


@dataclass(frozen=True)
class FarthestSample:
    """The answer of the target model that is farthest from the truth, by `RULE`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the choice."""
        return {"by": "samples", "rule": RULE}

    def pick(self, question: str, truth: str, answers: Sequence[str]) -> Result:
        """Text and place of the rejected answer, or why there is none."""
        place = farthest(truth, answers)
        if place is None:
            return {LEFT_OUT: f"none of {len(answers)} sampled answers is surely false"}
        return {"rejected": answers[place], "sample": place, "f1": round(word_f1(answers[place], truth), 4)}


@dataclass(frozen=True)
class ModelPicker:
    """A language model that picks an answer, or writes one.

    Args:
        chat: the model.
        datasets: names of the data sets that questions are from, see `chat.ask`.
        cache: folder of its answers.
    """

    chat: ChatModel
    datasets: Collection[str]
    cache: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the choice."""
        return {"by": "judge", "prompt": PROMPT, **deciding(self.chat)}

    def pick(self, question: str, truth: str, answers: Sequence[str]) -> Result:
        """Text and place of the rejected answer; place None for a written one.

        Raises:
            RequestError, WorkError: as `ask_json`.
        """
        numbered = {str(number): text for number, text in enumerate(answers, start=1) if words_of(text)}
        asked = json.dumps({"question": question, "true answer": truth, "answers": numbered}, ensure_ascii=False)
        messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": asked}]

        def read(fields: Mapping[str, Any]) -> Result:
            return _chosen(fields, truth, answers)

        return ask_json(self.chat, messages, read, datasets=self.datasets, cache=self.cache)


def farthest(truth: str, answers: Sequence[str]) -> int | None:
    """Place of the answer that `RULE` takes; None where there is none.

    Example:
        >>> farthest("right lung", ["the right lung", "left lung", "heart", "right"])
        2
    """
    own = words_of(truth)
    counts = Counter(tuple(words_of(text)) for text in answers)
    ranked = []
    for place, text in enumerate(answers):
        words = words_of(text)
        if words and not may_be_right(text, truth):
            ranked.append((word_f1(text, truth), abs(len(words) - len(own)), -counts[tuple(words)], place))
    return min(ranked)[-1] if ranked else None


def may_be_right(answer: str, truth: str) -> bool:
    """Whether an answer says every word of the truth, or no other words than those of the truth."""
    said, true = set(words_of(answer)), set(words_of(truth))
    return said >= true or said <= true


def word_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall of words, each counted as often as it is said; 0 to 1."""
    said, true = Counter(words_of(answer)), Counter(words_of(truth))
    shared = (said & true).total()
    return 2 * shared / (said.total() + true.total()) if shared else 0.0


def _chosen(fields: Mapping[str, Any], truth: str, answers: Sequence[str]) -> Result:
    choice, written = fields.get("choice"), fields.get("written", "")
    numbers = [0, *(number for number, text in enumerate(answers, start=1) if words_of(text))]
    if not isinstance(choice, int) or isinstance(choice, bool) or choice not in numbers:
        raise ValueError(f"choice is {choice!r:.40}, not one of {', '.join(map(str, numbers))}")
    if not isinstance(written, str):
        raise ValueError("written is no text")
    text = " ".join((answers[choice - 1] if choice else written).split())
    if not words_of(text):
        raise ValueError("the rejected answer has no words")
    if words_of(text) == words_of(truth):
        raise ValueError("the rejected answer is the true one")
    if not choice and any(pattern.search(text) for pattern in _LEAKED):
        raise ValueError("the written answer speaks of this task")
    return {"rejected": text, "sample": choice - 1 if choice else None, "f1": round(word_f1(text, truth), 4)}
