"""Does a text state the right facts? Precision, recall and F1 of sets of atomic facts, per item. No torch.

Where facts come from is the source's business: the phantom parses them from text (`lightbox.phantom.facts.parse`).
"""

from collections.abc import Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FactScore:
    """Precision, recall and F1 in [0, 1]; `is_right` where the sets are equal: all facts stated and no false one."""

    precision: float
    recall: float
    f1: float
    is_right: bool


def score_facts(stated: Set[str], true: Set[str]) -> FactScore:
    """Compare the facts a text states with the facts it should state.

    Nothing stated has precision 1 and nothing to state has recall 1, so two empty sets score 1; one empty set scores
    F1 0.

    Example:
        >>> score_facts({"disc on left"}, {"disc on left", "dense disc"}).recall
        0.5
    """
    hits = len(stated & true)
    precision = hits / len(stated) if stated else 1.0  # saying nothing is no false statement; recall punishes it
    recall = hits / len(true) if true else 1.0
    f1 = 2 * hits / (len(stated) + len(true)) if stated or true else 1.0
    return FactScore(precision, recall, f1, is_right=stated == true)
