"""Three exercises on MMedPO: recall, modify, break. Fill in the functions; `solutions.py` is beside this file.

Check your work from the checkout, in under a minute:

    uv run pytest tests/mmedpo/test_exercises.py -k untouched_or_right

A function that still raises NotImplementedError counts as untouched; any other must be right. None trains a model.
"""

from collections.abc import Sequence

import numpy as np

from lightbox.paper.preference_pairs import Pair


def weigh(scores: np.ndarray) -> np.ndarray:
    """Recall: what does a pair weigh that a judge gave this score?

    Write it by hand, without `mmedpo.relevance`: mean 1 and variance a tenth over all pairs, then cut to the paper's
    bounds.

    Args:
        scores: (n,), in [0, 1], not all alike.

    Returns:
        (n,), in [0.75, 1.25], in the order of the scores.
    """
    raise NotImplementedError("exercise 1")


def noised_around(images: np.ndarray, lesions: np.ndarray, step: int, seeds: Sequence[int]) -> np.ndarray:
    """Modify: a control for claim P5, beside noise elsewhere: all is noised but the lesion.

    What would it mean if a model learnt more from these pairs? Use `mmedpo.noise.noised`.

    Args:
        images: uint8 (n, h, w).
        lesions: bool (n, h, w).
        step: of the schedule.
        seeds: one an image.

    Returns:
        uint8 (n, h, w); pixels of the lesions are as they were.
    """
    raise NotImplementedError("exercise 2")


def given_away_by_length(pairs: Sequence[Pair]) -> list[Pair]:
    """Break: text pairs that can be told apart without reading them, as 94 % of the released ones can.

    DPO on them goes down as fast as ever, and teaches to be short. Nothing but the dispreferred answers may change.

    Args:
        pairs: text pairs whose answers have as many words.

    Returns:
        The same pairs, each with a dispreferred answer of more words than the preferred one, and still false.
    """
    raise NotImplementedError("exercise 3")
