"""MMedPO's objective: weighted DPO over text and image pairs.

L = - mean of s' log sigmoid(b log(pi(y_w|x) / pi_o(y_w|x)) - b log(pi(y_l|x*) / pi_o(y_l|x*))): for text pairs x* = x,
for image pairs y_l = y_w. Log-probabilities are sums over the tokens of an answer, its end token included. Every
objective of `lightbox.losses.preference` that reads two answers may stand in its place.
"""

from jaxtyping import Float, Int
from torch import Tensor

from lightbox.losses.preference import OBJECTIVES, Answers, is_won, preference_loss

BETA = 0.1
"""Of the official code, which never sets it."""


def pair_loss(
    policy: Float[Tensor, "2 b"],
    tokens: Int[Tensor, "2 b"],
    reference: Float[Tensor, "2 b"],
    weights: Float[Tensor, " b"],
    objective: str = "dpo",
    **numbers: float,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Sum the objective over the pairs of a batch.

    Args:
        policy: log-probabilities of the preferred answers and of the others, with gradient.
        tokens: how many tokens that is; a pair with an answer without tokens gives no loss.
        reference: the same by the weights at the start of the training.
        weights: of the pairs, s' in the paper, >= 0.
        objective, numbers: see `lightbox.losses.preference.preference_loss`; numbers are beta and what else it takes.

    Returns:
        The sum, with gradient; the number of pairs that count, by which the driver divides; detached diagnostics: the
        share of pairs in which the policy finds the preferred answer likelier (`won`) and the mean reward margin,
        b times the difference of gains (`margin`).

    Raises:
        RequestError: an unknown objective or a number out of its range.
    """
    is_referred = objective in OBJECTIVES and OBJECTIVES[objective].has_reference
    chosen, rejected = (Answers(policy[k], tokens[k], reference[k] if is_referred else None) for k in (0, 1))
    loss, pairs = preference_loss(chosen, rejected, objective, weights=weights, **numbers)
    gains = (policy - reference).detach()
    margin = numbers.get("beta", BETA) * (gains[0] - gains[1])
    return loss, pairs, {"won": is_won(chosen, rejected).float().mean(), "margin": margin.mean()}


def answer_loss(
    policy: Float[Tensor, "1 b"], tokens: Int[Tensor, "1 b"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Cross-entropy of the preferred answers, for the start and for the rival that continues SFT.

    Takes their log-probabilities and tokens as `pair_loss` does; the sum is in nats, and divided by the tokens.
    """
    return -policy.sum(), tokens.sum(), {}
