"""Solutions to `exercises.py`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lightbox.paper.preference_pairs import Pair
from mmedpo.noise import noised


def weigh(scores: np.ndarray) -> np.ndarray:
    return np.clip(1 + np.sqrt(0.1) * (scores - scores.mean()) / scores.std(), 0.75, 1.25)


def noised_around(images: np.ndarray, lesions: np.ndarray, step: int, seeds: Sequence[int]) -> np.ndarray:
    # were it as good as noise on the lesion, then a spoilt image would be what is learnt, and no looking
    return noised(images, ~lesions, step, seeds)


def given_away_by_length(pairs: Sequence[Pair]) -> list[Pair]:
    return [replace(pair, rejected=f"{pair.rejected} , as seen in the image .") for pair in pairs]
