"""Solutions to `exercises.py`."""

import numpy as np

FIRST_LOSS = float(np.log(2))  # policy and reference are the same, so the margin is 0


def affine_weights(scores: np.ndarray) -> np.ndarray:
    return 1 + np.sqrt(0.1) * (scores - scores.mean()) / scores.std()


def scores_without_effect() -> np.ndarray:
    # (s - 1) / sqrt(0.1) is at most 0 for any score, so the cut makes 0.75 of all of them
    return np.array([0.0, 0.25, 0.5, 0.75, 1.0])


UNTEACHABLE = ("yes", "yes")  # under the same image; the gradients of both sides cancel
