"""Six exercises on MMedPO: recall, modify, break, twice each. Fill in the functions; `solutions.py` is beside them.

Check your work from the checkout, in under a minute:

    uv run pytest tests/mmedpo/test_exercises.py -k untouched_or_right

A function that still raises NotImplementedError counts as untouched; any other must be right. None trains a model.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

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


def svco(gains: Sequence[float], beta: float) -> float:
    """Recall: what does S-VCO's third side do? Write the loss of one pair by hand, without `lightbox.losses`.

    The answer under the true image shall lead the one without an image, and that one the answer under the noised image.
    Where DPO has one lead, there are two here, and they add up. Why is the noised image held against no image, too?

    Args:
        gains: h of the same answer under the true image, under the noised one, and without an image, in nats.
        beta: of the leads, > 0.

    Returns:
        The loss, 2 log 2 where all gains are alike.
    """
    raise NotImplementedError("exercise 4")


def without_trivial(
    pairs: Sequence[Pair], chosen: Float[Tensor, " n"], rejected: Float[Tensor, " n"], lead: float
) -> list[Pair]:
    """Modify: leave out the pairs that are won before training, which cost log 2 like any other and teach little.

    What does this do to the weights, whose mean is 1 over all pairs? And what would you say of a method that was tuned
    on what its own start finds hard?

    Args:
        pairs: of a run.
        chosen: log-probability of each preferred side under the start, as the first row of `PairLearner.reference`.
        rejected: of the other side, the second row.
        lead: in nats, >= 0; a pair is trivial where the preferred side leads by more.

    Returns:
        The others, in order. A pair that leads by exactly `lead` stays.
    """
    raise NotImplementedError("exercise 5")


def hidden_drift(n: int, nats: float) -> Float[Tensor, " n"]:
    """Break: a policy that has left its reference far behind, and of which KTO says that it has not moved.

    `lightbox.losses.preference.kto_drift` takes the mean of the gains of mismatched answers, and nothing below 0. Give
    gains that it does not see. Which policy would have such gains, and what does KTO then ask of it?

    Args:
        n: number of answers, >= 1, odd or even.
        nats: how far each answer shall be from the reference, > 0.

    Returns:
        Gains of the answers, each at least `nats` from 0, whose drift is 0.
    """
    raise NotImplementedError("exercise 6")
