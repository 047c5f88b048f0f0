"""The fact table of a case, the sentences that state facts, and the parser that reads them back.

A rationale is a chain of sentences. `parse` turns any text into the set of atomic facts it states, so that the facts
of a question and the facts of a generated rationale are compared in one vocabulary (fact-F1).
"""

import re
from dataclasses import dataclass

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

    @property
    def heart_bin(self) -> str:
        """The ratio's five-percent bin in words, for example "45 to 50"."""
        low = self.heart_pct // 5 * 5
        return f"{low} to {low + 5}"


def state_finding(f: FindingFact) -> str:
    """What is seen and where.

    Example: "a small dense disc lies in the left upper zone ."
    """
    return f"a {f.look} lies in the {f.where} ."


def state_name(f: FindingFact) -> str:
    """What an appearance is called, as in: a small dense disc is a nodule."""
    return f"a {f.look} is {_article(f.name)} {f.name} ."


def state_heart(facts: FactTable) -> str:
    """The cardiothoracic ratio as a five-percent bin."""
    return f"the heart takes {facts.heart_bin} percent of the chest width ."


def state_clear() -> str:
    """No finding at all."""
    return "the lungs are clear ."


def state_look(name: str) -> str:
    """How a class would look, as in: a nodule is a small dense disc."""
    c = next(c for c in CLASSES if c.name == name)
    return f"{_article(name)} {name} is a {c.look} ."


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def with_article(word: str) -> str:
    """The word with "a" or "an" before it."""
    return f"{_article(word)} {word}"


_FINDING = re.compile(
    rf"^an? (?P<size>{'|'.join(SIZES)}) (?P<density>{'|'.join(DENSITY_WORDS.values())}) "
    rf"(?P<shape>{'|'.join(SHAPE_WORDS.values())}) lies in the (?P<side>right|left) "
    r"(?P<place>upper zone|middle zone|lower zone|hilum|costophrenic angle)$"
)


def parse(text: str) -> frozenset[str]:
    """The atomic facts that a text states.

    A finding sentence gives four facts (what lies where, on which side, its density, its size); any other sentence is
    one fact. Unknown sentences are facts too, and false ones: a model that makes up a sentence loses precision.

    Args:
        text: sentences that end in "."; case and spacing do not matter.

    Example:
        >>> sorted(parse("a small dense disc lies in the left hilum ."))
        ['dense disc', 'disc in left hilum', 'disc on left', 'small disc']
    """
    facts: set[str] = set()  # a set: saying a fact twice is saying it once
    for sentence in re.split(r"\s*\.\s*", " ".join(text.lower().split())):
        if not sentence:
            continue
        match = _FINDING.match(sentence)
        if match is None:
            facts.add(sentence)  # not dropped: an invented sentence must cost precision
            continue
        shape = match["shape"]
        facts |= {
            f"{shape} in {match['side']} {match['place']}",
            f"{shape} on {match['side']}",
            f"{match['density']} {shape}",
            f"{match['size']} {shape}",
        }
    return frozenset(facts)
