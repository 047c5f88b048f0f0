"""How well the words of two texts, without image and prompt, give away which of them is the rejected one. No torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightbox.errors import RequestError

FOLDS = 5
_Z95 = 1.96


@dataclass(frozen=True)
class Separability:
    """What a bag of words makes of n pairs of texts, each judged by a fit to other groups.

    `is_right` is boolean, n x 2: chosen and rejected text. `accuracy` is its mean, .5 by chance, and `half_width` half
    of its 95 % interval, where answers on one group go together. `cut` is the accuracy, with its half width, where both
    texts of a pair are cut to the length of the shorter one. `telling` are words with the numbers of rejected and of
    chosen texts that hold them, the greatest difference first.
    """

    is_right: np.ndarray
    accuracy: float
    half_width: float
    cut: tuple[float, float]
    telling: tuple[tuple[str, int, int], ...]


def separability(texts: Sequence[tuple[str, str]], groups: np.ndarray) -> Separability:
    """Fit a logistic regression to word counts, and judge texts of groups that it was not fitted to.

    Args:
        texts: n pairs of chosen and rejected text, as words parted by spaces.
        groups: n numbers from 0 that name the group of each pair, such as its image; five of them at least.

    Raises:
        RequestError: fewer than five groups.
    """
    if len(np.unique(groups)) < FOLDS:
        raise RequestError(
            f"{len(texts)} pairs of texts in {len(np.unique(groups))} groups",
            f"A fit to some groups is judged on others, in {FOLDS} parts",
            f"Give pairs of at least {FOLDS} images",
        )
    is_right = _held_out(texts, groups)
    accuracy, half_width = _mean_by_group(is_right, groups)
    cut = _mean_by_group(_held_out([_cut_alike(*pair) for pair in texts], groups), groups)
    return Separability(is_right, accuracy, half_width, cut, _telling(texts))


def _held_out(texts: Sequence[tuple[str, str]], groups: np.ndarray) -> np.ndarray:
    # scikit-learn takes a second to import, which reading a dataset of questions need not wait for
    from sklearn.feature_extraction.text import CountVectorizer  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import GroupKFold  # noqa: PLC0415

    flat = [text or "-" for pair in texts for text in pair]  # a vocabulary may not be empty
    is_rejected = np.tile([False, True], len(texts))
    is_right = np.zeros(len(flat), dtype=bool)
    for fitted, held in GroupKFold(FOLDS).split(flat, groups=np.repeat(groups, 2)):
        words = CountVectorizer(analyzer=str.split)
        counts = words.fit_transform([flat[row] for row in fitted])
        model = LogisticRegression(max_iter=1000).fit(counts, is_rejected[fitted])
        is_right[held] = model.predict(words.transform([flat[row] for row in held])) == is_rejected[held]
    return is_right.reshape(-1, 2)


def _mean_by_group(is_right: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    mean = float(is_right.mean())
    surplus = np.bincount(groups, weights=(is_right - mean).sum(axis=1))
    return mean, float(_Z95 * np.sqrt((surplus**2).sum()) / is_right.size)


def _cut_alike(chosen: str, rejected: str) -> tuple[str, str]:
    length = min(len(chosen.split()), len(rejected.split()))
    return " ".join(chosen.split()[:length]), " ".join(rejected.split()[:length])


def _telling(texts: Sequence[tuple[str, str]]) -> tuple[tuple[str, int, int], ...]:
    chosen, rejected = (Counter(word for pair in texts for word in set(pair[side].split())) for side in (0, 1))
    surplus = {word: rejected[word] - chosen[word] for word in chosen | rejected}
    ranked = sorted(surplus, key=lambda word: (-abs(surplus[word]), word))
    return tuple((word, rejected[word], chosen[word]) for word in ranked)
