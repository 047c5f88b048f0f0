"""What a report says, and reports that say something false in as many words. No torch.

Sentences are those of `lightbox.phantom.reports`, in any of their wordings.
"""

import re
from collections.abc import Callable

from lightbox.phantom.facts import with_article
from lightbox.phantom.ontology import CLASS_NAMES, DENSITY_WORDS, PLACES, SHAPE_WORDS, place_phrase

OTHER_SIDE = {"right": "left", "left": "right"}
NO = "no "
ABSURD = "heart"
"""What no report calls absent."""
_NAMES = "|".join(CLASS_NAMES)
_WHERE = re.compile("|".join(place_phrase(side, place) for side, place in PLACES))
_NAME = re.compile(rf"\b(?:{_NAMES})\b")
_LOOK = re.compile(rf"\b((?:{'|'.join(DENSITY_WORDS.values())}) (?:{'|'.join(SHAPE_WORDS.values())}))\b")
_ABSENT = (
    (re.compile(r"there is no (\w+) \."), "there is {a_name} ."),
    (re.compile(r"no (\w+) is seen \."), "{a_name} is seen ."),
    (re.compile(r"(\w+) is absent \."), "{name} is present ."),
)
"""Sentences of absence, and what says the opposite in as many words."""
_CLEAR = re.compile(r"lungs are clear|no focal finding")
_HEART = re.compile(r"\b(?:heart|cardiac|cardiomegaly)\b")
_IS_NORMAL = re.compile(r"\b(?:not|normal|no)\b")


def sentences_of(report: str) -> list[str]:
    """The sentences of a report, each with its full stop."""
    return [f"{' '.join(part.split())} ." for part in report.lower().split(".") if part.strip()]


def report_facts(report: str) -> frozenset[str]:
    """What a report states: findings with their place, the heart's size, absences as "no NAME".

    A sentence that is of no known form is a fact of its own, and a false one.

    Example:
        >>> sorted(report_facts("the left hilum shows a nodule , a small dense disc . no mass is seen ."))
        ['no mass', 'nodule in left hilum']
    """
    return frozenset(_fact(sentence) for sentence in sentences_of(report))


def is_true(fact: str, truth: frozenset[str]) -> bool:
    """Whether a fact holds for an image whose full report states `truth`: absences hold for all that it does not name.

    "NAME somewhere" holds where the truth places one.
    """
    if fact.startswith(NO) or fact.endswith(" somewhere"):
        name = fact.removeprefix(NO).removesuffix(" somewhere")
        is_there = any(own.startswith(f"{name} in ") for own in truth)
        return is_there != fact.startswith(NO) and name in CLASS_NAMES
    return fact in truth


def report_rivals(report: str) -> dict[str, list[str]]:
    """False reports by grade, each with as many words: one false sentence, all that can be false, an absurd one."""
    sentences, truth = sentences_of(report), report_facts(report)
    false = [_falsified(sentence) for sentence in sentences]
    near = [_with(sentences, place, other) for place, other in enumerate(false) if other != sentences[place]]
    absurd = [
        _with(sentences, place, sentence.replace(match[1], ABSURD))
        for place, sentence in enumerate(sentences)
        if (match := _absence(sentence)[0])
    ]
    rivals = {"near": near, "far": [" ".join(false)] if len(near) > 1 else [], "absurd": absurd}
    return {
        grade: [text for text in texts if not all(is_true(fact, truth) for fact in report_facts(text))]
        for grade, texts in rivals.items()
    }


def _fact(sentence: str) -> str:
    where, name, look = (pattern.search(sentence) for pattern in (_WHERE, _NAME, _LOOK))
    absent, _ = _absence(sentence)
    if where and (name or look):
        return f"{name[0] if name else look[1]} in {where[0]}"
    if absent:
        return NO + absent[1]
    if _CLEAR.search(sentence):
        return "clear lungs"
    if _HEART.search(sentence):
        return "normal heart" if _IS_NORMAL.search(sentence) else "large heart"
    return f"{name[0]} somewhere" if name else sentence


def _absence(sentence: str) -> tuple[re.Match[str] | None, str]:
    """The match of a sentence of absence, whose group is the name, and the form of its opposite."""
    for pattern, opposite in _ABSENT:
        if match := pattern.fullmatch(sentence):
            return match, opposite
    return None, ""


def _falsified(sentence: str) -> str:
    """A finding on the other side, or one that is absent said to be there; any other sentence as it is."""
    match, opposite = _absence(sentence)
    if match:
        return opposite.format(name=match[1], a_name=with_article(match[1]))
    swap: Callable[[re.Match[str]], str] = lambda found: OTHER_SIDE[found[0]]  # noqa: E731  a name for one line
    return re.sub(r"\b(?:right|left)\b", swap, sentence) if _WHERE.search(sentence) else sentence


def _with(sentences: list[str], place: int, other: str) -> str:
    return " ".join([*sentences[:place], other, *sentences[place + 1 :]])
