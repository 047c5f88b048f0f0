"""False answers to questions about a phantom, and false reports of it, by how far they are from the truth. No torch.

| grade | what is false |
|---|---|
| near | one thing: the other option, the other side, the zone beside it, one finding more, one sentence of a report |
| far | more: side and height, several findings, a class that looks otherwise, all that can be false in a report |
| absurd | nothing that the question could be about |

Each has as many words as the true one, all of them words that the tiny tokenizers know.
"""

import re

from lightbox.phantom.facts import NUMBER_WORDS, with_article
from lightbox.phantom.ontology import CLASS_NAMES, CLASSES, PLACES, place_phrase
from lightbox.phantom.report_facts import ABSENCES, WHERE, is_true, report_facts, sentences_of
from lightbox.records import Question

REPORT, NAMING = "report", "naming"
"""Kinds that the phantom does not name: the request for a report, and what is seen in a place."""
ABSURD = {
    1: ("heart", "chest", "lungs", "image"),
    2: ("left heart", "right chest"),
    3: ("left upper heart", "right lower chest", "left middle heart"),
}
"""By number of words, what answers no question of the phantom."""
OTHER_SIDE = {"right": "left", "left": "right"}
PRESENCES = ("there is {a_name} .", "{a_name} is seen .", "{name} is present .")
"""For each of `ABSENCES` what says the opposite in as many words."""
_PLACES = [place_phrase(side, place) for side, place in PLACES]
_CLASS = {own.name: own for own in CLASSES}


def rivals(asked: Question) -> dict[str, list[str]]:
    """False answers by grade: near, far, absurd; to a question there is a near one always."""
    answer = asked.answer
    if asked.kind == REPORT:
        return report_rivals(answer)
    if asked.is_closed:
        near = [option for option in asked.options if option != answer]
        far = [name for name in CLASS_NAMES if name not in asked.options] if near[0] in CLASS_NAMES else []
    elif asked.kind == "count":
        number = NUMBER_WORDS.index(answer)
        near = [word for k, word in enumerate(NUMBER_WORDS) if abs(k - number) == 1]
        far = [word for k, word in enumerate(NUMBER_WORDS) if abs(k - number) > 1]
    elif asked.kind == NAMING:
        others = [name for name in CLASS_NAMES if name != answer]
        near = [name for name in others if _looks_like(name, answer)] or others
        far = [name for name in others if not _looks_like(name, answer)]
    else:
        near, far = _other_places(answer)
    return {"near": near, "far": far, "absurd": list(ABSURD[len(answer.split())])}


def report_rivals(report: str) -> dict[str, list[str]]:
    """False reports by grade."""
    sentences, truth = sentences_of(report), report_facts(report)
    false = [_falsified(sentence) for sentence in sentences]
    absurd = [_falsified(sentence, name=ABSURD[1][0]) for sentence in sentences]
    near, absurd = (
        [" ".join([*sentences[:k], other, *sentences[k + 1 :]]) for k, other in enumerate(own) if other != sentences[k]]
        for own in (false, absurd)
    )
    choices = {"near": near, "far": [" ".join(false)] if len(near) > 1 else [], "absurd": absurd}
    return {
        grade: [text for text in texts if not all(is_true(fact, truth) for fact in report_facts(text))]
        for grade, texts in choices.items()
    }


def _looks_like(name: str, other: str) -> bool:
    if other not in _CLASS:
        return False
    return _CLASS[name].shape == _CLASS[other].shape or _CLASS[name].density == _CLASS[other].density


def _other_places(answer: str) -> tuple[list[str], list[str]]:
    """Places with as many words that differ in side or height, and in both."""
    side, height = answer.split(" ", 1)
    near, far = [], []
    for place in _PLACES:
        other_side, other_height = place.split(" ", 1)
        differences = (other_side != side) + (other_height != height)
        if differences and len(place.split()) == len(answer.split()):
            (near if differences == 1 else far).append(place)
    return near, far


def _falsified(sentence: str, *, name: str = "") -> str:
    """A finding on the other side, or one that is absent said to be there; any other sentence as it is.

    Where a `name` is given, only sentences of absence change: it is called absent in the place of what they name.
    """
    for pattern, presence in zip(ABSENCES, PRESENCES, strict=True):
        if match := pattern.fullmatch(sentence):
            own = match[1]
            return sentence.replace(own, name) if name else presence.format(name=own, a_name=with_article(own))
    if name or not WHERE.search(sentence):
        return sentence
    return re.sub(r"\b(?:right|left)\b", lambda side: OTHER_SIDE[side[0]], sentence)
