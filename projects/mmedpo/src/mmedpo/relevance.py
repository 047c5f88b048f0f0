"""What a pair weighs: judges who score it, their debate, and how scores become weights. Pure functions. No torch.

The paper's judges are language models; here they are simulated, with bias and noise over a relevance that is known, so
that their error can be measured. A score is in tenths from 0 (clinically absurd) to 1 (plausible and relevant).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightbox.errors import RequestError
from mmedpo.config import ObjectiveConfig

ROUNDS = 5
AGREED = 0.2  # a judge adopts what the one before said where it lies within this of the own opinion
SPREAD = 0.1  # variance of weights before they are cut, in the paper's appendix; their mean is 1


@dataclass(frozen=True, slots=True)
class Judge:
    """A simulated judge: opinion = relevance + bias + noise x a normal draw, to the nearest tenth in [0, 1]."""

    bias: float
    noise: float


JUDGES = (Judge(0.15, 0.25), Judge(-0.15, 0.25), Judge(0.0, 0.3), Judge(0.1, 0.35))
"""The first is the single one. Their number, bias and noise are ours."""


def opinions(relevance: np.ndarray, judges: Sequence[Judge], *, seed: int) -> np.ndarray:
    """What each judge thinks of each pair, (judges, n) in tenths, where `relevance`, (n,) in [0, 1], is true."""
    rng = np.random.default_rng([seed, 7])
    own = [relevance + judge.bias + judge.noise * rng.standard_normal(len(relevance)) for judge in judges]
    return np.round(np.clip(own, 0, 1), 1)


def debate(opinions: np.ndarray) -> np.ndarray:
    """The scores that judges agree on, speaking in turn; where they do not, the mean of all that was said.

    Each judge hears the score before and adopts it where it lies within `AGREED` of the own opinion, else says the own.
    A pair is settled by the first round in which all say the same. Opinions are (judges, n), the scores (n,).

    Example:
        >>> debate(np.array([[0.8, 0.0], [0.9, 1.0]])).tolist()
        [0.8, 0.5]
    """
    said: list[np.ndarray] = []
    settled = np.full(opinions.shape[1], np.nan)
    heard = opinions[0]
    for _ in range(ROUNDS):
        this_round = []
        for own in opinions:
            heard = np.where(np.abs(own - heard) <= AGREED + 1e-9, heard, own)
            this_round.append(heard)
        said += this_round
        agree = np.ptp(this_round, axis=0) == 0
        settled = np.where(np.isnan(settled) & agree, heard, settled)
    return np.where(np.isnan(settled), np.mean(said, axis=0), settled)


def scored(relevance: np.ndarray, scorer: str, *, seed: int) -> np.ndarray:
    """The score of each pair, (n,), by `data.scorer`, where `relevance` is true; the single judge is the first."""
    if scorer == "known":
        return relevance
    own = opinions(relevance, JUDGES, seed=seed)
    return {"single": own[0], "mean": own.mean(axis=0), "debate": debate(own)}[scorer]


def normalised(scores: np.ndarray, reading: str, *, low: float = 0.75, high: float = 1.25) -> np.ndarray:
    """Weights of scores by one of three readings of the paper, cut to [low, high].

    | reading | before the cut | what it does |
    |---|---|---|
    | affine | 1 + sqrt(0.1) (s - m) / sd | mean 1, variance 0.1; the one that keeps an order, and the default |
    | fitted | (s - m) / sd, m and sd of the scores | mean 0: most weights are `low` |
    | literal | (s - 1) / sqrt(0.1) | scores are at most 1: every weight is `low` |

    Args:
        scores: (n,).
        reading: see above.
        low, high: bounds; infinite ones do not cut.

    Returns:
        (n,); where all scores are alike, affine weights are 1.

    Raises:
        RequestError: scores that are missing, infinite or outside [0, 1].
    """
    wrong = np.flatnonzero(~((scores >= 0) & (scores <= 1)))  # NaN fails too
    if len(wrong):
        raise RequestError(
            f"Score {wrong[0]} of {len(scores)} is {scores[wrong[0]]}",
            "A relevance is a number from 0 to 1",
            "Score the pair again, or leave it out",
        )
    if reading == "literal":
        return np.clip((scores - 1) / SPREAD**0.5, low, high)
    spread = scores.std()
    # of equal scores it is not always 0 but a rounding error, which would be blown up to a whole deviation
    standard = (scores - scores.mean()) / spread if np.ptp(scores) > 0 else np.zeros_like(scores)
    return np.clip(standard if reading == "fitted" else 1 + SPREAD**0.5 * standard, low, high)


def weights_of(scores: np.ndarray, kinds: Sequence[str], objective: ObjectiveConfig, *, seed: int) -> np.ndarray:
    """Weights of pairs as `objective.weights` says; inverted ones weigh most what is least relevant.

    Args:
        scores: (n,), in [0, 1].
        kinds: of the pairs; permuted weights move among pairs of a kind, so that a kind keeps its share.
        objective: how weights are made, and their bounds.
        seed: of the permutation.

    Raises:
        RequestError: see `normalised`.
    """
    if objective.weights == "uniform":
        return np.ones(len(scores))
    shown = 1 - scores if objective.weights == "inverted" else scores
    weights = normalised(shown, objective.reading, low=objective.weight_low, high=objective.weight_high)
    if objective.weights == "permuted":
        rng = np.random.default_rng([seed, 8])
        for kind in sorted(set(kinds)):
            places = np.flatnonzero(np.asarray(kinds) == kind)
            weights[places] = weights[rng.permutation(places)]
    return weights
