"""Names and what they mean: the paper's idea, and the controls that take the meaning out of it. No torch.

A class has a name and three attributes in words. On the phantom both are drawn anew for each run seed: the name is a
pseudo-word, and each attribute one of three synonyms, so that neither can be known beforehand. On real data the words
are those of `shared_data/knowledge`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from lightbox import knowledge
from lightbox.errors import RequestError
from lightbox.phantom.knobs import TRIPLE_SETS
from lightbox.phantom.ontology import TRIPLES
from lightbox.phantom.splits import triple_mask

FILLER = "as the image may or may not show to whoever looks at it with care and with some time to spare today".split()
FILLERS_A_WORD = 3
PARTS = TRIPLE_SETS[:4]
"""Of the phantom's ontology: known, unseen_composition, unseen_pair, unseen_value."""
KNOWN, NEW = "known", "new"
"""Parts of a real data set: classes that its training part has, and the rest."""
MADE_BY = {"names": 1, "synonyms": 2, "scrambled": 3, "random": 4, "nearest": 5, "other": 6}
"""What a random draw is for -> its own stream of the run seed."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, in an order of their own.

    Args:
        names: of each.
        values: shape, density and location of each, as the source has them; equal ones are equal attributes.
        words: the same attributes in words, by kind, as a definition says them.
        parts: of the data set that each belongs to; training holds the part "known".
        seed: of the run.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    words: tuple[Mapping[str, str], ...]
    parts: tuple[str, ...]
    seed: int

    @cached_property
    def places(self) -> dict[str, int]:
        """Name -> place in the order."""
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def partners(self) -> list[int]:
        """For each class the one whose definition it gets where definitions are scrambled; none gets its own.

        Classes of one part swap among each other: the scrambled sentences of known classes are those that are learnt.
        """
        partners = list(range(len(self.names)))
        for part in dict.fromkeys(self.parts):
            members = [place for place, own in enumerate(self.parts) if own == part]
            order = _stream(self.seed, "scrambled").permutation(members).tolist()
            for place, other in zip(order, order[1:] + order[:1], strict=True):
                partners[place] = other
        return partners

    def nearest(self, place: int) -> int:
        """A known class that shares the most attributes with this one and is not it."""
        shared = [
            sum(a == b for a, b in zip(self.values[place], self.values[other], strict=True))
            if part == KNOWN and other != place
            else -1
            for other, part in enumerate(self.parts)
        ]
        best = np.flatnonzero(np.array(shared) == max(shared))
        return int(best[_stream(self.seed, "nearest", place).integers(len(best))])


def _stream(seed: int, purpose: str, *more: int) -> np.random.Generator:
    return np.random.default_rng([seed, MADE_BY[purpose], *more])


@lru_cache(maxsize=4)
def phantom_classes(seed: int) -> Classes:
    """The 224 triples of the ontology under pseudo-words, in words that the phantom itself never says."""
    names = _stream(seed, "names").permutation(knowledge.PSEUDO_WORDS).tolist()
    draws = _stream(seed, "synonyms").integers(knowledge.N_SYNONYMS, size=(len(TRIPLES), 4)).tolist()
    table = knowledge.synonyms()
    words = tuple(table.describe(triple, draws=own) for triple, own in zip(TRIPLES, draws, strict=True))
    parts = tuple(next(part for part in PARTS if triple_mask(part)[place]) for place in range(len(TRIPLES)))
    return Classes(tuple(names), TRIPLES, words, parts, seed)


def real_classes(names: Sequence[str], known: Sequence[str], seed: int) -> Classes:
    """The classes of a real data set with their rows of the knowledge table.

    Raises:
        RequestError: a class that no table describes.
    """
    table = knowledge.findings()
    rows = {name: table.look_of(name) for name in names}
    missing = [name for name, row in rows.items() if row is None]
    if missing:
        raise RequestError(
            f"The data set has the class '{missing[0]}'" + f" and {len(missing) - 1} more" * (len(missing) > 1),
            "No table of shared_data/knowledge says what it looks like",
            "Add a row to one of them, or a table of your own beside them, or train with data.prompt=name",
        )
    words = tuple({kind: getattr(row, kind) for kind in knowledge.ATTRIBUTES} for row in rows.values())
    values = tuple(tuple(said.values()) for said in words)
    return Classes(tuple(names), values, words, tuple(KNOWN if name in set(known) else NEW for name in names), seed)


def define(classes: Classes, name: str, how: str, *, item: int = 0) -> str:
    """The definition of a class as an arm has it.

    Args:
        classes: of the data set.
        name: of the class.
        how: true, scrambled, random, long, nearest, other, no_ATTRIBUTE or only_ATTRIBUTE.
        item: number of the item, for what is drawn anew for each.

    Example:
        >>> classes = phantom_classes(0)
        >>> define(classes, classes.names[0], "only_location") in classes.words[0].values()
        True
    """
    place = classes.places[name]
    if how == "scrambled":
        place = classes.partners[place]
    elif how in ("random", "other"):
        others = [k for k, part in enumerate(classes.parts) if k != place and part == classes.parts[place]]
        others = others or [place]  # a set of one class has no other
        place = others[_stream(classes.seed, how, item).integers(len(others))]
    elif how == "nearest":
        place = classes.nearest(place)
    words = dict(classes.words[place])
    if how.startswith("no_"):
        del words[how.removeprefix("no_")]
    elif how.startswith("only_"):
        words = {how.removeprefix("only_"): words[how.removeprefix("only_")]}
    text = ", ".join(words.values())
    if how == "long":
        text += " " + " ".join((FILLER * 9)[: FILLERS_A_WORD * len(text.split())])
    return text
