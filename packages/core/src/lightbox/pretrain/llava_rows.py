"""What the tiny `llava` is pretrained on: the report of each image, and questions whose text alone tells nothing.

Many turns about one image make one row of tokens, each turn blind to the others. The image comes once; every turn sees
it and itself, and counts its positions from the image's end. So each turn is computed exactly as if it stood alone, at
a fraction of the cost.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from lightbox.losses.language import IGNORED
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.pretrain.t5 import pad
from lightbox.pretrain.tower import normalise
from lightbox.records import Case, Question

WORLDS = (Knobs(), Knobs(), Knobs(vocabulary="triples"))
"""Two thirds named classes, one third any known triple; no text prior, no held-out triple, no label noise."""
QUESTIONS_PER_CASE = 8
CAPTION, NAMING = "caption", "naming"
CAPTION_PROMPTS = ("describe the image .", "what does the image show ?", "write a report .")
PADDING, IMAGE_TURN, CAPTION_TURN = 0, 1, 2
"""Turn numbers of tokens; questions count on from 3."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One prompt about an image and its answer.

    `kind` is "caption", a question kind of the phantom, or "naming" for its open question what is seen in a place.
    """

    kind: str
    prompt: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatSet:
    """Images and what is said about each.

    `cases` are labelled and hold the pixels, uint8 (h, w); `turns` has one list a case, its caption first.
    """

    cases: list[Case]
    turns: list[list[Turn]]

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """Images of some cases, uint8 (b, h, w)."""
        return np.stack([np.asarray(self.cases[i].images[0]) for i in indices])


def chat_set(split: str, n_cases: int, *, seed: int = 0) -> ChatSet:
    """Draw images with captions and balanced questions from a phantom split, the worlds one after the other.

    Args:
        split: a phantom split.
        n_cases: images in all; a multiple of the number of worlds, else a few less are drawn.
        seed: run seed; each world has its own case seeds.
    """
    share = n_cases // len(WORLDS)
    cases: list[Case] = []
    for k, knobs in enumerate(WORLDS):
        seeds = seed_range(split, seed + k, share)
        cases += draw_cases(seeds, knobs, questions_per_case=QUESTIONS_PER_CASE, split=split)
    question_ids = balanced([question for case in cases for question in case.questions])
    turns = [
        [caption_turn(case, k), *(question_turn(q) for q in case.questions if q.id in question_ids)]
        for k, case in enumerate(cases)
    ]
    return ChatSet(cases, turns)


def caption_turn(case: Case, number: int) -> Turn:
    """The report, asked for in one of a few ways."""
    return Turn(CAPTION, CAPTION_PROMPTS[number % len(CAPTION_PROMPTS)], case.report.text)


def question_turn(question: Question) -> Turn:
    """A question and its short answer; choices are not listed, the question names them or is of yes or no."""
    is_naming = question.kind == "presence" and not question.is_closed
    return Turn(NAMING if is_naming else question.kind, question.text, question.answer, question.options)


def balanced(questions: Sequence[Question]) -> set[str]:
    """Ids of the questions to keep: all open ones, and of each closed text equally many of every answer.

    The phantom balances its default world on average; here the counts are equal, in any world.
    """
    counts = Counter((q.text, q.answer) for q in questions)  # by text: the same words must not tell the answer
    used: Counter[tuple[str, str]] = Counter()
    question_ids = set()
    for q in questions:
        used[q.text, q.answer] += 1
        if not q.is_closed or used[q.text, q.answer] <= min(counts[q.text, option] for option in q.options):
            question_ids.add(q.id)
    return question_ids


def majority_answers(turns: Sequence[Turn]) -> dict[str, str]:
    """The commonest answer of each prompt: the best that the text alone can do."""
    counts = Counter((turn.prompt, turn.answer) for turn in turns)
    best: dict[str, str] = {}
    for (prompt, answer), _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        best.setdefault(prompt, answer)
    return best


class ChatRows:
    """Tokenised turns and their collation.

    A batch is `pixel_values` (b, 3, h, w), `input_ids` (b, t), `turns` (b, t; turn numbers), `position_ids` (b, t) and
    `labels` (b, t; the token that comes next where it belongs to an answer, else -100).

    Args:
        data: images and turns.
        tokenizer: the tiny llava's.
        prefix: what comes before every turn, the image tokens included.
        assistant: the token before an answer.
    """

    def __init__(
        self, data: ChatSet, tokenizer: PreTrainedTokenizerFast, *, prefix: Sequence[str], assistant: str
    ) -> None:
        self.data = data
        ids = tokenizer.get_vocab()
        self.prefix = [ids[token] for token in prefix]
        self.assistant, self.eos = ids[assistant], ids[str(tokenizer.eos_token)]
        flat = [turn for turns in data.turns for turn in turns]
        prompts = iter(tokenizer([turn.prompt for turn in flat], add_special_tokens=False)["input_ids"])
        answers = iter(tokenizer([turn.answer for turn in flat], add_special_tokens=False)["input_ids"])
        self.texts = [[(next(prompts), next(answers)) for _ in turns] for turns in data.turns]
        self.lengths = [sum(len(p) + len(a) + 2 for p, a in texts) for texts in self.texts]

    def __len__(self) -> int:
        return len(self.texts)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Pad some rows to the longest of them."""
        return {"pixel_values": normalise(self.data.pixels(indices)), **self.tokens(indices)}

    def tokens(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch without its images."""
        columns = list(zip(*(self._row(i) for i in indices), strict=True))
        fills = {"input_ids": 0, "labels": IGNORED, "turns": PADDING, "position_ids": 0}
        return {name: pad(list(rows), fill) for (name, fill), rows in zip(fills.items(), columns, strict=True)}

    def _row(self, index: int) -> tuple[list[int], list[int], list[int], list[int]]:
        start = len(self.prefix)
        ids, labels = list(self.prefix), [IGNORED] * start
        turns, positions = [IMAGE_TURN] * start, list(range(start))
        for number, (prompt, answer) in enumerate(self.texts[index], CAPTION_TURN):
            ids += [*prompt, self.assistant, *answer, self.eos]
            # shifted by one already: the label stands where it is predicted
            labels += [*[IGNORED] * len(prompt), *answer, self.eos, IGNORED]
            turns += [number] * (len(ids) - len(turns))
            positions += range(start, start + len(ids) - len(positions))
        return ids, labels, turns, positions


def turn_mask(turns: Tensor) -> Tensor:
    """Who sees whom, bool (b, 1, t, t): what came before, of the same turn or of the image.

    Args:
        turns: turn number of each token, (b, t).
    """
    same = (turns[:, :, None] == turns[:, None, :]) | (turns[:, None, :] == IMAGE_TURN)
    return same.tril()[:, None]  # tril: within a turn each token sees those before it


def answer_logits(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (n, v) of the positions that carry a label, and where those are, bool (b, t)."""
    hidden = model.model(
        input_ids=batch["input_ids"],
        pixel_values=batch["pixel_values"],
        attention_mask=turn_mask(batch["turns"]),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    is_label = batch["labels"] != IGNORED
    return model.lm_head(hidden[is_label]), is_label


def chat_loss(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict]:
    """Summed cross-entropy of captions and answers in nats, the number of their tokens, and the mean of either."""
    logits, is_label = answer_logits(model, batch)
    losses = F.cross_entropy(logits, batch["labels"][is_label], reduction="none")  # n
    is_caption = batch["turns"][is_label] == CAPTION_TURN
    means = {"caption": losses[is_caption].mean().detach(), "answer": losses[~is_caption].mean().detach()}
    return losses.sum(), is_label.sum(), means
