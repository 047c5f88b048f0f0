"""MedThink's objective: token cross-entropy of the target, L = - sum_n log p(Y_n | X, Y_<n).

The paper's only loss. What differs between strategies is the target; what differs from the official code is that pads
carry no loss (`label_rows` in `data` decides, by labels).
"""

from jaxtyping import Float, Int
from torch import Tensor

from lightbox.losses.language import IGNORED, token_cross_entropy


def target_loss(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Sum the cross-entropy over supervised target tokens.

    Implements the sequence loss of MedThink: Y is the target text, X the question, options and image. Differs from the
    official code in the mean only where pads are masked: the caller divides by the supervised tokens of the whole step.

    Args:
        logits: decoder output; position n is the distribution of Y_n given X and Y_<n.
        labels: ids of Y, -100 where a position carries no loss.

    Returns:
        The sum in nats, with gradient; the number of supervised tokens; detached diagnostics: the share of them
        predicted right (`token_acc`, in [0, 1]).
    """
    total, tokens = token_cross_entropy(logits, labels)
    is_supervised = labels != IGNORED
    hits = (logits.detach().argmax(dim=-1) == labels) & is_supervised
    return total, tokens, {"token_acc": hits.sum() / tokens.clamp(min=1)}
