"""The fact table of a case, the sentences that state facts, and the parser that reads them back.

A rationale is a chain of sentences. `parse` turns any text into the set of atomic facts it states, so that the facts
of a question and the facts of a generated rationale are compared in one vocabulary (fact-F1).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lightbox.phantom.ontology import CLASSES, DENSITY_WORDS, SHAPE_WORDS, SIZES, place_phrase

NUMBER_WORDS = ("none", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True, slots=True)
class FindingFact:
    """One finding as facts: words of the ontology, side and place, area in world units squared."""

    name: str
    size: str
    density: str
    shape: str
    side: str
    place: str
    area: int

    @property
    def look(self) -> str:
        """Appearance in words, for example "small dense disc"."""
        return f"{self.size} {DENSITY_WORDS[self.density]} {SHAPE_WORDS[self.shape]}"

    @property
    def where(self) -> str:
        """Place in words, for example "left upper zone"."""
        return place_phrase(self.side, self.place)

    @property
    def zone(self) -> str:
        """Vertical zone: hilum counts as middle, costophrenic angle as lower."""
        return {"hilum": "middle", "costophrenic": "lower"}.get(self.place, self.place)


@dataclass(frozen=True, slots=True)
class FactTable:
    """Everything that is true of a case: its findings, largest first, and the cardiothoracic ratio in percent."""

    findings: tuple[FindingFact, ...]
    heart_pct: int

    @property
    def has_cardiomegaly(self) -> bool:
        """Cardiothoracic ratio above 0.5."""
        return self.heart_pct > 50


_FORMS: dict[str, tuple[str, ...]] = {
    "finding": ("a {look} lies in the {where} .", "in the {where} lies a {look} .", "the {where} holds a {look} ."),
    "name": ("a {look} is {a_name} .", "the {look} is {a_name} ."),
    "look": ("{a_name} is a {look} .", "{a_name} shows a {look} ."),
    "where": ("the {name} lies in the {where} .", "in the {where} lies the {name} ."),
    "clear": ("the lungs are clear .", "no finding lies in the lungs ."),
    "heart": ("the heart takes {share} half of the chest width .", "of the chest width the heart takes {share} half ."),
    "heart_name": ("that is a {heart} heart .", "the heart is {heart} ."),
    "larger_side": ("the larger one lies on the {side} .", "the {side} lung holds the larger one ."),
    "larger": ("the {name} is larger .", "the larger one is the {name} ."),
    "above": ("the {name} lies above .", "above lies the {name} ."),
    "largest": ("the largest is in the {zone} part .", "the {zone} part holds the largest ."),
    "count": ("that makes {number} .", "{number} in the image ."),
    "count_by_side": (
        "that makes {right} on the right , {left} on the left .",
        "{right} on the right , {left} on the left .",
    ),
}
"""Sentences of a rationale, each in its wordings; the first one is that in which facts are compared."""


def state(kind: str, **parts: str) -> str:
    """A sentence of `_FORMS` in its first wording."""
    return _FORMS[kind][0].format(**parts)


def state_finding(f: FindingFact) -> str:
    """What is seen and where.

    Example: "a small dense disc lies in the left upper zone ."
    """
    return state("finding", look=f.look, where=f.where)


def state_name(f: FindingFact) -> str:
    """What an appearance is called, as in: a small dense disc is a nodule."""
    return state("name", look=f.look, a_name=with_article(f.name))


def state_where(f: FindingFact) -> str:
    """Where a finding lies, by its name, as in: the nodule lies in the left upper zone."""
    return state("where", name=f.name, where=f.where)


def state_look(name: str) -> str:
    """How a class would look, as in: a nodule is a small dense disc."""
    return state("look", a_name=with_article(name), look=next(c for c in CLASSES if c.name == name).look)


def state_heart(facts: FactTable) -> tuple[str, str]:
    """How wide the heart is against the chest, and what that is called."""
    words = ("more than", "large") if facts.has_cardiomegaly else ("no more than", "normal")
    return state("heart", share=words[0]), state("heart_name", heart=words[1])


def reword(sentences: Sequence[str], draw: int) -> tuple[str, ...]:
    """Sentences in their first wordings, each in a wording that a draw chooses."""
    worded = []
    for sentence in sentences:
        kind, parts = _read(sentence.removesuffix(" ."))
        # two or three wordings: a sixth of the draw is fair to both
        worded.append(_FORMS[kind][draw % 6 % len(_FORMS[kind])].format(**parts))
        draw //= 6
    return tuple(worded)


def with_article(word: str) -> str:
    """The word with "a" or "an" before it."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


_SIZE_DENSITY_SHAPE = "|".join(SIZES), "|".join(DENSITY_WORDS.values()), "|".join(SHAPE_WORDS.values())
_NAME = r"[a-z]+(?: [a-z]+)?"
_PARTS = {
    "look": r"(?P<look>(?:(?:{}) )?(?:{}) (?:{}))".format(*_SIZE_DENSITY_SHAPE),
    "where": r"(?P<where>(?:right|left) (?:upper zone|middle zone|lower zone|hilum|costophrenic angle))",
    "name": rf"(?P<name>{_NAME})",
    "a_name": rf"(?P<a_name>an? {_NAME})",
    "side": r"(?P<side>right|left)",
    "zone": r"(?P<zone>upper|middle|lower)",
    "share": r"(?P<share>more than|no more than)",
    "heart": r"(?P<heart>large|normal)",
    **{name: rf"(?P<{name}>{'|'.join(NUMBER_WORDS)})" for name in ("number", "right", "left")},
}
_READERS = [
    (kind, re.compile(form.removesuffix(" .").format(**_PARTS))) for kind, forms in _FORMS.items() for form in forms
]


@lru_cache(maxsize=4096)  # a world has few sentences, and they come again and again
def _read(sentence: str) -> tuple[str, dict[str, str]]:
    """Kind and parts of a sentence without its full stop; ("", {}) for one that no rationale holds."""
    for kind, reader in _READERS:
        match = reader.fullmatch(sentence)
        if match is not None:
            return kind, match.groupdict()
    return "", {}


def sentence_kind(sentence: str) -> str:
    """What a rationale's sentence, without its full stop, is about: "finding", "name", ...; "" where it is of none."""
    return _read(sentence)[0]


def parse(text: str) -> frozenset[str]:
    """The atomic facts that a text states.

    A finding sentence gives four facts (what lies where, on which side, its density, its size); any other sentence is
    one fact, whichever its wording. Unknown sentences are facts too, and false ones: a model that makes up a sentence
    loses precision.

    Args:
        text: sentences that end in "."; case and spacing do not matter.

    Example:
        >>> sorted(parse("in the left hilum lies a small dense disc ."))
        ['dense disc', 'disc in left hilum', 'disc on left', 'small disc']
    """
    facts: set[str] = set()  # a set: saying a fact twice is saying it once
    for sentence in re.split(r"\s*\.\s*", " ".join(text.lower().split())):
        kind, parts = _read(sentence)
        if kind == "finding" and parts["look"].count(" ") == 2:
            size, density, shape = parts["look"].split()
            side = parts["where"].split()[0]
            facts |= {f"{shape} in {parts['where']}", f"{shape} on {side}", f"{density} {shape}", f"{size} {shape}"}
        elif sentence:
            # not dropped where unknown: an invented sentence must cost precision
            facts.add(_FORMS[kind][0].format(**parts).removesuffix(" .") if kind else sentence)
    return frozenset(facts)
