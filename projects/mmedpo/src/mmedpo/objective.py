"""MMedPO's objective: weighted DPO over text and image pairs.

L = - mean of s' log sigmoid(b log(pi(y_w|x) / pi_o(y_w|x)) - b log(pi(y_l|x*) / pi_o(y_l|x*))): for text pairs x* = x,
for image pairs y_l = y_w. Log-probabilities are sums over the tokens of an answer, its end token included. Every
objective of `lightbox.losses.preference` may stand in its place.
"""

from jaxtyping import Float, Int
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.losses.preference import Answers, is_won, kto_drift, objective_of, preference_loss

BETA = 0.1
"""Of the official code, which never sets it."""
LOSSES = {"svco": "vco"}
"""By `objective.method`, where the loss has another name."""


def pair_loss(
    policy: Float[Tensor, "s b"],
    tokens: Int[Tensor, "s b"],
    reference: Float[Tensor, "s b"],
    weights: Float[Tensor, " b"],
    method: str = "dpo",
    **numbers: float,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Sum the objective over the pairs of a batch. Implements L of the module, for every objective that may replace it.

    Args:
        policy: log-probabilities of the preferred answers and of the others, with gradient; for svco then of the
            preferred ones without an image, for kto of both beside the prompts of other pairs.
        tokens: how many tokens that is; a pair with an answer without tokens gives no loss.
        reference: the same by the weights at the start of the training.
        weights: of the pairs, s' in the paper, >= 0.
        method: see `config.PREFERENCES`.
        numbers: beta and what else the objective takes, see `lightbox.losses.preference.preference_loss`.

    Returns:
        The sum, with gradient; the number of pairs that count, by which the driver divides; detached diagnostics: the
        share of pairs in which the policy finds the preferred answer likelier (`won`), the mean reward margin, b times
        the difference of gains (`margin`), and of kto how far the policy is from the reference (`drift`).

    Raises:
        RequestError: an unknown objective, a number out of its range, or other rows than the objective reads.
    """
    objective = LOSSES.get(method, method)
    reads = objective_of(objective)
    if len(policy) != reads.n_answers:
        raise RequestError(
            f"objective.method is {method} and there are {len(policy)} log-probabilities a pair",
            f"It reads {reads.n_answers} answers of each",
            "Open the learner with the sides of this objective, `pair_learner.sides_of`",
        )
    rows = zip(policy, tokens, reference, strict=True)
    chosen, rejected, *more = (Answers(own, n, known if reads.has_reference else None) for own, n, known in rows)
    drift = {"drift": kto_drift(more)} if reads.reads_mismatched else {}
    blind = more[0] if reads.reads_blind else None
    loss, pairs = preference_loss(chosen, rejected, objective, weights=weights, blind=blind, **numbers, **drift)
    gains = (policy - reference).detach()
    margin = numbers.get("beta", BETA) * (gains[0] - gains[1])
    means = {"won": is_won(chosen, rejected).float().mean(), "margin": margin.mean()}
    return loss, pairs, means | {name: policy.new_tensor(value) for name, value in drift.items()}


def answer_loss(
    policy: Float[Tensor, "1 b"], tokens: Int[Tensor, "1 b"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Cross-entropy of the preferred answers, for the start and for the rival that continues SFT.

    Takes their log-probabilities and tokens as `pair_loss` does; the sum is in nats, and divided by the tokens.
    """
    return -policy.sum(), tokens.sum(), {}
