"""Questions what is seen in a place, with the box of what is, in words that the tiny models have learnt.

The answer is the look of a finding, as "grey mesh", also where the look has a name of its own: of the shape a small
finding has few pixels. There are no options, so a guess is seldom right.
"""

from dataclasses import dataclass

from lightbox.records import Box, Case, Question


@dataclass(frozen=True, slots=True)
class BoxedQuestion(Question):
    """A question about a finding; `boxes` say where that lies, and `kind` how large it is drawn, as "small_50"."""

    boxes: tuple[Box, ...] = ()

    @property
    def diameter(self) -> float:
        """Geometric mean of the sides of the finding's box, a fraction of the image."""
        return self.boxes[0].area ** 0.5


def place_questions(case: Case, *, scale_pct: int) -> list[BoxedQuestion]:
    """A question for each finding that is the only one at its place.

    Args:
        case: of the phantom, with boxes.
        scale_pct: of its lesions.
    """
    asked = []
    places = [finding.attributes["location"] for finding in case.findings]
    for finding in case.findings:
        place = finding.attributes["location"]
        if places.count(place) > 1:
            continue
        asked.append(
            BoxedQuestion(
                f"{case.id}/{place.replace(' ', '-')}",
                f"what is seen in the {place} ?",
                f"{finding.attributes['density']} {finding.attributes['shape']}",
                kind=f"{finding.attributes['size']}_{scale_pct}",
                boxes=finding.boxes,
            )
        )
    return asked
