"""Losses over text tokens: sums and counts, never means, so that accumulation over unequal batches stays exact."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, float64

IGNORED = -100
"""The label of a position that carries no loss, as in transformers."""


def token_cross_entropy(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"], *, ignored: int = IGNORED
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum the cross-entropy over supervised tokens; position t of `logits` predicts position t of `labels`.

    Labels are plain ids: to leave padding in the mean, as some authors do, give it its id instead of `ignored`.

    Args:
        logits: unnormalised, any float dtype; computed in float32 at least, since a half loses small probabilities.
        labels: token ids in [0, v), or `ignored` where a position carries no loss.
        ignored: the label that carries no loss.

    Returns:
        The sum in nats, >= 0, with gradient to `logits`, and the number of supervised tokens. Both are 0, and the
        gradient is 0, where nothing is supervised.

    Example:
        >>> import torch
        >>> total, tokens = token_cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
        >>> round(float(total), 4), int(tokens)  # log 4
        (1.3863, 1)
    """
    total = F.cross_entropy(_wide(logits).flatten(0, 1), labels.flatten(), ignore_index=ignored, reduction="sum")
    return total, (labels != ignored).sum()


def sequence_logp(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"], *, ignored: int = IGNORED
) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    """Sum the log-probability of each row's supervised tokens.

    Args:
        logits: unnormalised, any float dtype; computed in float32 at least.
        labels: token ids in [0, v), or `ignored` where a position does not count.
        ignored: the label that does not count.

    Returns:
        One log-probability a row, <= 0, with gradient to `logits`, and the number of tokens in it; a row without
        supervised tokens gives 0 and 0. Divide the first by the second for a length-normalised score.
    """
    losses = F.cross_entropy(_wide(logits).flatten(0, 1), labels.flatten(), ignore_index=ignored, reduction="none")
    return -losses.view(labels.shape).sum(dim=1), (labels != ignored).sum(dim=1)  # b


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == float64 else logits.float()
