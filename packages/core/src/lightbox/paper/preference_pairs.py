"""Preference pairs as papers make them: what stands against the true answer, or against the true image. No torch."""

from dataclasses import dataclass

from lightbox.records import Preference


@dataclass(frozen=True, slots=True)
class Pair(Preference):
    """A preference pair of a sample, with its provenance.

    The sample's own image is the one under which the preferred answer is read; `rejected_image` is the row in the same
    split of the one under which the other is, the same row for text pairs. `grade` says how plausible the dispreferred
    side is, in the words of the paper that made the pair; `how` what was changed, and by what.
    """

    grade: str = ""
    how: str = ""
    rejected_image: int = -1
