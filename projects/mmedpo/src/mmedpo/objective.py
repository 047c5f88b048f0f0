"""MMedPO's objective: weighted DPO over text and image pairs.

L = - mean of s' log sigmoid(b log(pi(y_w|x) / pi_o(y_w|x)) - b log(pi(y_l|x*) / pi_o(y_l|x*))): for text pairs x* = x,
for image pairs y_l = y_w. Log-probabilities are sums over the tokens of an answer, its end token included. Every
objective of `lightbox.losses.preference` that reads two answers may stand in its place.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from lightbox.losses.preference import OBJECTIVES, Answers, is_won, preference_loss


@dataclass(frozen=True)
class Settings:
    """Which objective, and its numbers; see `lightbox.losses.preference`."""

    objective: str = "dpo"
    beta: float = 0.1
    smoothing: float = 0.0
    margin: float = 0.0


def pair_loss(
    policy: Float[Tensor, "2 b"],
    tokens: Int[Tensor, "2 b"],
    reference: Float[Tensor, "2 b"],
    weights: Float[Tensor, " b"],
    settings: Settings,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Sum the objective over the pairs of a batch.

    Args:
        policy: log-probabilities of the preferred answers and of the others, with gradient.
        tokens: how many tokens that is; a pair with an answer without tokens gives no loss.
        reference: the same by the weights at the start of the training.
        weights: of the pairs, s' in the paper, >= 0.
        settings: see `Settings`.

    Returns:
        The sum, with gradient; the number of pairs that count, by which the driver divides; detached diagnostics: the
        share of pairs in which the policy finds the preferred answer likelier (`won`) and the mean reward margin,
        b times the difference of gains (`margin`).

    Raises:
        RequestError: an unknown objective or a number out of its range.
    """
    has_reference = OBJECTIVES[settings.objective].has_reference if settings.objective in OBJECTIVES else False
    chosen, rejected = (
        Answers(policy[side], tokens[side], reference[side] if has_reference else None) for side in (0, 1)
    )
    loss, pairs = preference_loss(
        chosen,
        rejected,
        settings.objective,
        weights=weights,
        beta=settings.beta,
        smoothing=settings.smoothing,
        margin=settings.margin,
    )
    gains = (policy - reference).detach()
    margin = settings.beta * (gains[0] - gains[1])
    return loss, pairs, {"won": is_won(chosen, rejected).float().mean(), "margin": margin.mean()}


def answer_loss(
    policy: Float[Tensor, "1 b"], tokens: Int[Tensor, "1 b"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Cross-entropy of the preferred answers, for the start and for the rival that continues SFT.

    Args:
        policy: log-probabilities of the answers, with gradient.
        tokens: how many tokens that is.

    Returns:
        The sum in nats, with gradient; the number of tokens; no diagnostics.
    """
    return -policy.sum(), tokens.sum(), {}
