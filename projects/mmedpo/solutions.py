"""Solutions to `exercises.py`."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightbox.paper.preference_pairs import Pair
from mmedpo.noise import noised


def weigh(scores: np.ndarray) -> np.ndarray:
    return np.clip(1 + np.sqrt(0.1) * (scores - scores.mean()) / scores.std(), 0.75, 1.25)


def noised_around(images: np.ndarray, lesions: np.ndarray, step: int, seeds: Sequence[int]) -> np.ndarray:
    # were it as good as noise on the lesion, then a spoilt image would be what is learnt, and no looking
    return noised(images, ~lesions, step, seeds)


def given_away_by_length(pairs: Sequence[Pair]) -> list[Pair]:
    return [replace(pair, rejected=f"{pair.rejected} , as seen in the image .") for pair in pairs]


def svco(gains: Sequence[float], beta: float) -> float:
    # DPO on images is won by pushing the noised side down alone; here the true image has to lead no image as well
    own, noised_gain, blind = gains
    return sum(math.log1p(math.exp(-beta * lead)) for lead in (own - blind, blind - noised_gain))


def without_trivial(
    pairs: Sequence[Pair], chosen: Float[Tensor, " n"], rejected: Float[Tensor, " n"], lead: float
) -> list[Pair]:
    # weights are to be made after this, or their mean is no longer 1; and scores on what is left flatter the method
    leads = (chosen - rejected).tolist()
    return [pair for pair, own in zip(pairs, leads, strict=True) if own <= lead]


def hidden_drift(n: int, nats: float) -> Float[Tensor, " n"]:
    # answers of all prompts got less likely, as where a policy falls apart: z is 0, as for one that never moved
    return torch.full((n,), -nats)
