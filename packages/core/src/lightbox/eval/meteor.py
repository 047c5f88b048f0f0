"""METEOR of one text against one reference by NLTK, with exact and stem matching and without synonyms. No torch.

Banerjee and Lavie 2005, with the parameters of Lavie and Agarwal 2007 that NLTK has: words are aligned where they are
equal, then where their Porter stems are; F = P R / (0.9 P + 0.1 R) is cut by 0.5 (chunks / matches)^3, where a chunk is
a run of words that stand side by side in both texts. Published numbers mostly match synonyms of WordNet too, a download
of its own, so they are a little higher.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from lightbox.eval.answers import words_of

if TYPE_CHECKING:
    from collections.abc import Callable


class _NoSynonyms:
    """Stands where NLTK asks WordNet, which is not there."""

    def synsets(self, word: str) -> list[Any]:
        return []


@cache
def _scorer() -> "Callable[..., float]":
    # nltk brings scikit-learn, seconds that arms without a report need not pay
    from nltk.translate.meteor_score import single_meteor_score  # noqa: PLC0415

    return single_meteor_score


def meteor(text: str, reference: str) -> float:
    """METEOR of one text, in [0, 1], over lower-case words without punctuation; 0 where either has none.

    Equal texts of n words score 1 - 0.5 / n^3: one chunk is the least.

    Example:
        >>> meteor("no lesions", "no lesion"), meteor("left", "right")
        (0.9375, 0.0)
    """
    stated, true = words_of(text), words_of(reference)
    return float(_scorer()(true, stated, wordnet=_NoSynonyms())) if stated and true else 0.0
