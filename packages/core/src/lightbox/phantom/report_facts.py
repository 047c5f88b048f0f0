"""What a report of the phantom states, in any wording of `phantom.reports`, and whether that is true.

A full report names all findings and the heart's size, and a few of the many things that are absent.
"""

import re

from lightbox.phantom.ontology import CLASS_NAMES, DENSITY_WORDS, PLACES, SHAPE_WORDS, place_phrase

ABSENT = "no "
SOMEWHERE = " somewhere"
WHERE = re.compile("|".join(place_phrase(side, place) for side, place in PLACES))
"""Any place in words."""
ABSENCES = tuple(re.compile(rf"{form} \.") for form in (r"there is no (\w+)", r"no (\w+) is seen", r"(\w+) is absent"))
"""Sentences that call one name absent."""
_NAME = re.compile(rf"\b(?:{'|'.join(CLASS_NAMES)})\b")
_LOOK = re.compile(rf"\b(?:{'|'.join(DENSITY_WORDS.values())}) (?:{'|'.join(SHAPE_WORDS.values())})\b")
_CLEAR = re.compile(r"lungs are clear|no focal finding")
_HEART = re.compile(r"\b(?:heart|cardiac|cardiomegaly)\b")
_IS_NORMAL = re.compile(r"\b(?:not|normal|no)\b")


def sentences_of(report: str) -> list[str]:
    """The sentences of a report in lower case, each with its full stop."""
    return [f"{' '.join(part.split())} ." for part in report.lower().split(".") if part.strip()]


def report_facts(report: str) -> frozenset[str]:
    """What a report states: findings with their place, the heart's size, absences as "no NAME".

    A finding without a place is one "somewhere". A sentence of no known form is a fact of its own, and a false one.

    Example:
        >>> sorted(report_facts("the left hilum shows a nodule , a small dense disc . no mass is seen ."))
        ['no mass', 'nodule in left hilum']
    """
    return frozenset(_fact(sentence) for sentence in sentences_of(report))


def is_true(fact: str, truth: frozenset[str]) -> bool:
    """Whether a fact holds for an image whose full report states `truth`; what it does not name is absent."""
    if fact.startswith(ABSENT) or fact.endswith(SOMEWHERE):
        name = fact.removeprefix(ABSENT).removesuffix(SOMEWHERE)
        is_there = any(own.startswith(f"{name} in ") for own in truth)
        return name in CLASS_NAMES and is_there != fact.startswith(ABSENT)
    return fact in truth


def _fact(sentence: str) -> str:
    where, name, look = (pattern.search(sentence) for pattern in (WHERE, _NAME, _LOOK))
    what = name or look
    if where and what:
        return f"{what[0]} in {where[0]}"
    for pattern in ABSENCES:
        if match := pattern.fullmatch(sentence):
            return ABSENT + match[1]
    if _CLEAR.search(sentence):
        return "clear lungs"
    if _HEART.search(sentence):
        return "normal heart" if _IS_NORMAL.search(sentence) else "large heart"
    return what[0] + SOMEWHERE if what else sentence
