"""Is the answer right? Letters of closed questions, exact match and token recall of open ones, per item. No torch.

A prediction that cannot be parsed is wrong, never left out: dropping failures flatters the model that fails most.
"""

import re
from dataclasses import dataclass

from lightbox.records import Question

# the sentence that targets are trained with, and no looser: rules that guess differ by 20 points
_LETTER = re.compile(r"the answer is\s*\(\s*([a-z])\s*\)", re.IGNORECASE)
_STATED = re.compile(r"the answer is\s+(.*?)\s*(?=\.(?:\s|$)|solution\s*:|$)", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(r"[a-z0-9]+(?:\.[0-9]+)?")  # 0.5 is one word, and a full stop behind a word is none


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Scores of one answer: `is_correct`, `is_parsed`, and the share of gold words stated (None for closed)."""

    is_correct: bool
    is_parsed: bool
    token_recall: float | None = None


def letter_of(index: int) -> str:
    """Letter of an option counted from 0: 0 is "A".

    Example:
        >>> letter_of(1)
        'B'
    """
    return chr(ord("A") + index)


def parse_letter(text: str) -> str | None:
    """The one letter in "The answer is (X)", upper case; None where there is no match or more than one.

    Case and spaces around the parentheses do not matter; everything else does.

    Example:
        >>> parse_letter("the answer is ( b ) ."), parse_letter("(B)")
        ('B', None)
    """
    letters = _LETTER.findall(text)
    # two answers are none: a model that names every letter must not score
    return letters[0].upper() if len(letters) == 1 else None


def parse_stated(text: str) -> str | None:
    """The words after the one "The answer is", up to a full stop, "Solution:" or the end; None where not exactly one.

    Example:
        >>> parse_stated("The answer is left lung. Solution: it is.")
        'left lung'
    """
    statements = _STATED.findall(text)
    return statements[0] if len(statements) == 1 and statements[0] else None


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers; punctuation goes, a decimal point inside a number stays.

    Example:
        >>> words_of("Left-sided, 0.5 cm.")
        ['left', 'sided', '0.5', 'cm']
    """
    return _WORD.findall(text.lower())


def score_letter(text: str, answer_index: int) -> AnswerScore:
    """Score a closed answer: right where the one parsed letter is the gold option's."""
    letter = parse_letter(text)
    return AnswerScore(is_correct=letter == letter_of(answer_index), is_parsed=letter is not None)


def score_stated(text: str, gold: str) -> AnswerScore:
    """Score an open answer: exact match of all words in order, and token recall.

    Token recall counts each gold word at most as often as it is stated, divided by the number of gold words, in [0, 1];
    a gold answer without words is recalled by an answer without words only.
    """
    stated = parse_stated(text)
    stated_words, gold_words = words_of(stated or ""), words_of(gold)
    return AnswerScore(
        is_correct=stated is not None and stated_words == gold_words,
        is_parsed=stated is not None,
        token_recall=_recall(stated_words, gold_words) if stated is not None else 0.0,
    )


def score_answer(text: str, question: Question) -> AnswerScore:
    """Score what a text answers to a question, by the letter of a closed one or the words of an open one."""
    if question.answer_index is not None:
        return score_letter(text, question.answer_index)
    return score_stated(text, question.answer)


def stated_answer(text: str, question: Question) -> str:
    """What a text answers, in words: the chosen option's text, or the open answer; "" where it cannot be parsed."""
    if not question.is_closed:
        return parse_stated(text) or ""
    options = {letter_of(place): option for place, option in enumerate(question.options)}
    return options.get(parse_letter(text) or "", "")


def _recall(stated_words: list[str], gold_words: list[str]) -> float:
    if not gold_words:
        return float(not stated_words)
    return sum(min(stated_words.count(word), gold_words.count(word)) for word in set(gold_words)) / len(gold_words)
