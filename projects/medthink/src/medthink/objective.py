"""MedThink's objective: token cross-entropy of the target, L = - sum_n log p(Y_n | X, Y_<n).

The paper's only loss. What differs between strategies is the target; what differs from the official code is that pads
carry no loss (`lightbox.backbones.t5.label_rows` decides, by labels).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightbox.losses.language import IGNORED, token_cross_entropy


def target_loss(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"], weights: Float[Tensor, "b t"] | None = None
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Sum the cross-entropy over supervised target tokens.

    Implements the sequence loss of MedThink: Y is the target text, X the question, options and image. Differs from the
    official code in the mean only where pads are masked: the caller divides by the supervised tokens of the whole step.

    Args:
        logits: decoder output; position n is the distribution of Y_n given X and Y_<n.
        labels: ids of Y, -100 where a position carries no loss.
        weights: of each position's term, see `answer_weights`; None weighs all alike.

    Returns:
        The sum in nats, with gradient; the number of supervised tokens; detached diagnostics: the share of them
        predicted right (`token_acc`, in [0, 1]).
    """
    is_supervised = labels != IGNORED
    tokens = is_supervised.sum()
    if weights is None:
        total, _ = token_cross_entropy(logits, labels)
    else:
        terms = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        total = (terms * weights).sum()
    hits = (logits.detach().argmax(dim=-1) == labels) & is_supervised
    return total, tokens, {"token_acc": hits.sum() / tokens.clamp(min=1)}


def answer_weights(labels: Int[Tensor, "b t"], n_answer: int) -> Float[Tensor, "b t"]:
    """Weights with which the answer, the first tokens of each target, counts as much as where it is the whole target.

    Answer-only divides a row's loss by the answer and the end token, Explanation by the whole target, so that an answer
    token moves the weights less, the longer the rationale. Not in the paper: a control of what the order is credited
    with. A row is weighed by its own length, so that the loss of a step does not depend on its micro-batches.

    Args:
        labels: ids, -100 where a position carries no loss; targets begin at position 0.
        n_answer: tokens of the answer in each row, without an end token.

    Example:
        >>> answer_weights(torch.tensor([[5, 6, 7, 1]]), n_answer=1)  # four tokens; answer-only would have two
        tensor([[2., 1., 1., 1.]])
    """
    lengths = (labels != IGNORED).sum(dim=1, keepdim=True)
    is_answer = torch.arange(labels.shape[1], device=labels.device) < n_answer
    return torch.where(is_answer, lengths / (n_answer + 1), torch.ones_like(lengths, dtype=torch.float32))
