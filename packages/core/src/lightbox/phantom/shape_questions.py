"""Questions about the shape of a finding, which is fine structure: a small finding has few pixels of it.

Four options are named in the question, so a guess is right in a quarter of cases; the place, in words, says which
finding is meant. Rings are held out, see `splits`.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from lightbox.phantom.ontology import SHAPE_WORDS
from lightbox.records import Box, Case, Question

SHAPES = tuple(sorted(set(SHAPE_WORDS.values()) - {SHAPE_WORDS["ring"]}))
N_OPTIONS = 4


@dataclass(frozen=True, slots=True)
class BoxedQuestion(Question):
    """A question about a finding; `boxes` say where that lies, and `kind` how large it is drawn, as "small_50"."""

    boxes: tuple[Box, ...] = ()

    @property
    def diameter(self) -> float:
        """Geometric mean of the sides of the finding's box, a fraction of the image."""
        return self.boxes[0].area ** 0.5


def shape_questions(case: Case, *, scale_pct: int) -> list[BoxedQuestion]:
    """A question for each finding that is the only one at its place.

    Args:
        case: of the phantom, with boxes.
        scale_pct: of its lesions.
    """
    asked = []
    places = [finding.attributes["location"] for finding in case.findings]
    for finding in case.findings:
        shape, place = finding.attributes["shape"], finding.attributes["location"]
        if places.count(place) > 1 or shape not in SHAPES:
            continue
        name = f"{case.id}/{place.replace(' ', '-')}"
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        others = rng.permutation([own for own in SHAPES if own != shape])[: N_OPTIONS - 1]
        options = tuple(rng.permutation([shape, *others]).tolist())
        text = f"What is seen in the {place}? {', '.join(options)}?"  # in words that the tiny models know
        kind = f"{finding.attributes['size']}_{scale_pct}"
        asked.append(
            BoxedQuestion(name, text, shape, options, answer_index=options.index(shape), kind=kind, boxes=finding.boxes)
        )
    return asked
