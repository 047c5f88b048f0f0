"""What the training rationales say: true, another item's, filler, corrupted; and masking for the reader. No torch.

Only training items are changed. Each transform is a pure function of items and seed; the answer is never touched.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from lightbox.errors import RequestError
from lightbox.paper.samples import Sample
from lightbox.phantom.facts import sentence_kind
from lightbox.phantom.ontology import CLASS_NAMES, SIDES, ZONES
from lightbox.records import Question

FILLER_WORDS = tuple("that is the part of the image in question".split())
"""Neutral, and one token each for the tiny tokenizer and for T5's."""
MASK = "<extra_id_0>"
CONCLUSIONS = frozenset("heart heart_name larger_side larger above largest count count_by_side".split())
"""Kinds of sentence that state what is asked, in other words at most; the others are what it is concluded from."""
TELLING = frozenset({"presence"})
"""Kinds of question whose rationale gives the answer by its form: what is there is named, what is not is left out."""
POLARITY_WORDS = frozenset("yes no not none never without absent present clear normal abnormal true false".split())
Questions = Sequence[Sample[Question]]
SWAPS = {"side": SIDES, "zone": ZONES, "finding": CLASS_NAMES}
_PATTERNS = {kind: re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE) for kind, words in SWAPS.items()}


def altered(
    items: Questions, kind: str, *, seed: int, corruption_pct: float, count_tokens: Callable[[str], int]
) -> list[Sample[Question]]:
    """Training items with the rationales that `data.rationale` names.

    Args:
        items: with their true rationales.
        kind: "true", "same_answer", "filler" or "corrupted".
        seed: of the draws.
        corruption_pct: for "corrupted", in [0, 100].
        count_tokens: length of a text, for "filler".
    """
    if kind == "same_answer":
        return with_same_answer(items, seed=seed)
    if kind == "filler":
        return [item.with_record(rationale=filler(count_tokens(item.record.rationale))) for item in items]
    if kind == "corrupted":
        return with_corruption(items, corruption_pct, seed=seed)
    return list(items)


def with_same_answer(items: Questions, *, seed: int) -> list[Sample[Question]]:
    """Give each item the rationale of another item of the same question kind with the same answer text.

    Items of one kind and answer are put in random order and each takes the rationale of the one some places on, of
    another case wherever that is possible, so every rationale is used once and none stays. An item that shares kind and
    answer with nobody is left with no rationale, hence an answer-only target.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.record.kind, item.record.answer.lower()].append(index)
    rng = np.random.default_rng([seed, 1, 0])
    result = list(items)
    for members in groups.values():
        order = rng.permutation(members).tolist()
        for taker, giver in zip(order, _rotated(order, items), strict=True):
            text = items[giver].record.rationale if giver != taker else ""
            result[taker] = items[taker].with_record(rationale=text)
    return result


def _rotated(order: list[int], items: Questions) -> list[int]:
    """The order moved on by the fewest places that give every item one of another case; by one where none does."""
    for shift in range(1, len(order)):
        givers = order[shift:] + order[:shift]
        if all(items[a].case_id != items[b].case_id for a, b in zip(order, givers, strict=True)):
            return givers
    return order[1:] + order[:1]


def filler(n_words: int) -> str:
    """Neutral words, `n_words` of them: one sentence over and over, cut off.

    Example:
        >>> filler(3)
        'that is the'
    """
    return " ".join(FILLER_WORDS[place % len(FILLER_WORDS)] for place in range(n_words))


def with_corruption(items: Questions, pct: float, *, seed: int) -> list[Sample[Question]]:
    """Corrupt exactly round(pct % of all) rationales, drawn among those that state a side, a zone or a finding.

    Raises:
        RequestError: where fewer rationales state one.
    """
    wanted = round(len(items) * pct / 100)
    able = [index for index, item in enumerate(items) if _swappable(item.record.rationale)]
    if len(able) < wanted:
        raise RequestError(
            f"data.corruption_pct is {pct}, which is {wanted} of {len(items)} rationales",
            f"Only {len(able)} of them state a side, a zone or a finding that could be swapped",
            "Set a lower data.corruption_pct",
        )
    rng = np.random.default_rng([seed, 2, 0])
    result = list(items)
    for index in rng.permutation(able)[:wanted].tolist():
        result[index] = items[index].with_record(rationale=corrupt(items[index].record.rationale, rng))
    return result


def corrupt(rationale: str, rng: np.random.Generator) -> str:
    """Swap one kind of fact everywhere in a rationale: each side, or zone, or finding for another.

    Equal words get equal replacements, so the text stays consistent with itself and is wrong about the image.
    """
    kinds = _swappable(rationale)
    kind = kinds[int(rng.integers(len(kinds)))]
    words = SWAPS[kind]
    shift = int(rng.integers(1, len(words)))  # a rotation of all words: no word keeps its meaning, no two merge
    place = {word: index for index, word in enumerate(words)}
    return _PATTERNS[kind].sub(lambda m: words[(place[m[0].lower()] + shift) % len(words)], rationale)


def _swappable(rationale: str) -> list[str]:
    """Kinds of fact that a rationale states and that could be swapped: side, zone, finding."""
    return [kind for kind, pattern in _PATTERNS.items() if pattern.search(rationale)]


def with_answer_hidden(items: Questions, *, hides_answer: bool) -> list[Sample[Question]]:
    """Questions as the reader of claim T4 gets them: with the evidence of the rationale only, or as they are.

    The reader is the same T5 without vision, trained on reference rationales in the template of stage 2. The paper's
    judge is a closed language model with the image; a fixed reader trained here is what can be repeated.
    """
    if not hides_answer:
        return list(items)
    return [item.with_record(rationale=masked(item.record, evidence(item.record))) for item in items]


def evidence(question: Question) -> str:
    """The rationale without the sentences that conclude, or that tell by being there; another source's as it is.

    Example:
        >>> text = "a small dense disc lies in the left hilum . the left lung holds the larger one ."
        >>> evidence(Question("q", "on which side is the larger finding ?", "left", rationale=text, kind="comparison"))
        'a small dense disc lies in the left hilum .'
    """
    sentences = [sentence.strip() for sentence in re.findall(r"\S[^.]*\.?", question.rationale or "")]
    kinds = [sentence_kind(sentence.rstrip(" .").lower()) for sentence in sentences]
    is_evidence = [not kind or (kind not in CONCLUSIONS and question.kind not in TELLING) for kind in kinds]
    return " ".join(sentence for sentence, is_one in zip(sentences, is_evidence, strict=True) if is_one)


def masked(question: Question, rationale: str) -> str:
    """The rationale with answer-bearing words replaced by `MASK`: words of the options or answer, and of polarity."""
    own = re.findall(r"\w+", " ".join((*question.options, question.answer)).lower())
    hidden = POLARITY_WORDS.union(own)
    return re.sub(r"\w+", lambda m: MASK if m[0].lower() in hidden else m[0], rationale)
