"""Losses over text tokens: sums and counts, never means, so that accumulation over unequal batches stays exact.

Where a model has a head of its own, supervised positions are chosen before it, so full logits never exist: a head gives
v logits a position, and v is 32,000 to 262,000 where a row may hold 1,000 positions of which 30 carry a loss. Choosing
first makes the head, its float32 copy and its gradient smaller by that share; sums stay the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

IGNORED = -100
"""The label of a position that carries no loss, as in transformers."""


def token_cross_entropy(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum the cross-entropy over supervised tokens; position t of `logits` predicts position t of `labels`.

    Labels are plain ids: to leave padding in the mean, as some authors do, give it its id instead of `IGNORED`.

    Args:
        logits: unnormalised, any float dtype; computed in float32 at least, since a half loses small probabilities.
        labels: token ids in [0, v), or `IGNORED` where a position carries no loss.

    Returns:
        The sum in nats, >= 0, with gradient to `logits`, and the number of supervised tokens. Both are 0, and the
        gradient is 0, where nothing is supervised.

    Example:
        >>> import torch
        >>> total, tokens = token_cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
        >>> round(float(total), 4), int(tokens)  # log 4
        (1.3863, 1)
    """
    total = F.cross_entropy(_wide(logits).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (labels != IGNORED).sum()


def supervised_rows(
    hidden: Float[Tensor, "b t d"], labels: Int[Tensor, "b t"]
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Choose the hidden rows that carry a label, in reading order; position t of both belongs together.

    Args:
        hidden: what the head reads.
        labels: token ids, or `IGNORED` where a position carries no loss.

    Returns:
        The rows, with gradient to `hidden`, and their labels; n is 0 where nothing is supervised.

    Example:
        >>> hidden = torch.arange(6.0).view(1, 3, 2)
        >>> supervised_rows(hidden, torch.tensor([[-100, 7, -100]]))
        (tensor([[2., 3.]]), tensor([7]))
    """
    places = (labels.flatten() != IGNORED).nonzero().flatten()  # n
    return hidden.flatten(0, 1).index_select(0, places), labels.flatten().index_select(0, places)


def row_cross_entropy(logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Sum the cross-entropy of chosen rows, in nats, >= 0; 0 with a zero gradient where there are none.

    Args:
        logits: of the chosen rows; computed in float32 at least.
        targets: one id in [0, v) a row.
    """
    return F.cross_entropy(_wide(logits), targets, reduction="sum")


def row_logps(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"], labels: Int[Tensor, "b t"]
) -> Float[Tensor, " b"]:
    """Sum the log-probabilities of chosen rows by the sequence that they come from.

    Args:
        logits: of the rows that `supervised_rows` chose by `labels`.
        targets: one id in [0, v) a row.
        labels: says which sequence each row belongs to.

    Returns:
        One log-probability a sequence, <= 0, with gradient; 0 where nothing of it is supervised.
    """
    sequence = (labels != IGNORED).nonzero()[:, 0]  # n
    logps = -F.cross_entropy(_wide(logits), targets, reduction="none")
    return logps.new_zeros(labels.shape[0]).index_add(0, sequence, logps)


def token_logps(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"], is_target: Bool[Tensor, "b t"]
) -> Float[Tensor, "b t"]:
    """Log-probability of each supervised token at its own place.

    Args:
        logits: of the rows that predict them, row after row.
        targets: one id in [0, v) a row.
        is_target: True at the n places.

    Returns:
        <= 0, with gradient; 0 at the other places.
    """
    logps = -F.cross_entropy(_wide(logits), targets, reduction="none")
    return logps.new_zeros(is_target.shape).masked_scatter(is_target, logps)


@contextmanager
def rows_before(head: nn.Module, labels: Int[Tensor, "b t"]) -> Iterator[None]:
    """Within this context `head` reads only the rows that `labels` supervises, so the model's logits are n v.

    Args:
        head: the language head; its first positional argument is b t d.
        labels: aligned with the head's positions.
    """

    def choose(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (supervised_rows(arguments[0], labels)[0], *arguments[1:])

    # a hook and not a call of the head: the model's own forward runs, whatever wraps it, so scaling before the head
    # (T5) and capping after it (Gemma) stay what they are
    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def _wide(logits: Tensor) -> Tensor:
    # gradcheck and oracles compute in float64, which must not be narrowed
    return logits if logits.dtype == torch.float64 else logits.float()
