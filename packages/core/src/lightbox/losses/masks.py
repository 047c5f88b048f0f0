"""Losses between the logits of masks and the true ones, each mask at its own size.

A loss is a mean over the pixels of a mask, so that a mask counts as one whatever its size, and then a sum over masks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightbox.errors import RequestError

SMOOTH = 1e-6


def mask_bce(logits: Sequence[Float[Tensor, "_ _"]], targets: Sequence[Shaped[Tensor, "_ _"]]) -> Float[Tensor, " n"]:
    """Binary cross-entropy of each mask, the mean over its pixels, in nats.

    Args:
        logits: of n masks, h w each, of any sizes.
        targets: of the same sizes; True or 1 is inside, and values between are soft.

    Returns:
        float32, >= 0, with gradient; of no length where there is no mask.

    Raises:
        RequestError: numbers or sizes that differ, or a mask without pixels.
    """
    _check(logits, targets)
    return _stacked(
        [F.binary_cross_entropy_with_logits(z.float(), t.float()) for z, t in zip(logits, targets, strict=True)]
    )


def mask_dice(
    logits: Sequence[Float[Tensor, "_ _"]], targets: Sequence[Shaped[Tensor, "_ _"]], *, smooth: float = SMOOTH
) -> Float[Tensor, " n"]:
    """1 - (2 sum p t + e) / (sum p + sum t + e) of each mask, with p = sigmoid(z).

    For an empty target that is 1 wherever anything is left of p, with hardly a gradient unless e is of the size of that
    sum: so there it is the cross-entropy that teaches.

    Args:
        logits, targets: see `mask_bce`.
        smooth: e, > 0.

    Returns:
        float32 in [0, 1], with gradient; of no length where there is no mask.

    Raises:
        RequestError: as `mask_bce`.

    Example:
        >>> loss = mask_dice([torch.tensor([[0.0, 0.0]])], [torch.tensor([[1, 0]])], smooth=1.0)
        >>> round(loss.item(), 4)
        0.3333
    """
    _check(logits, targets)
    losses = []
    for z, t in zip(logits, targets, strict=True):
        p, t = z.float().sigmoid(), t.float()  # in 16 bits a sum over the pixels of an image would stop growing
        losses.append(1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth))
    return _stacked(losses)


def mask_loss(
    logits: Sequence[Float[Tensor, "_ _"]],
    targets: Sequence[Shaped[Tensor, "_ _"]],
    *,
    bce: float,
    dice: float,
    smooth: float = SMOOTH,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Sum over masks of weighted cross-entropy and Dice losses.

    Args:
        logits, targets, smooth: see `mask_dice`.
        bce, dice: weights, >= 0.

    Returns:
        The sum, with gradient, 0 where there is no mask; the number of masks, to be held above 0 where it divides; and
        detached sums `bce` and `dice`, unweighted.

    Raises:
        RequestError: as `mask_bce`.
    """
    entropy, overlap = mask_bce(logits, targets).sum(), mask_dice(logits, targets, smooth=smooth).sum()
    count = torch.tensor(len(logits), device=entropy.device)
    return bce * entropy + dice * overlap, count, {"bce": entropy.detach(), "dice": overlap.detach()}


def _stacked(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses) if losses else torch.zeros(0)  # a mean over none would be NaN


def _check(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    sizes = [[tuple(mask.shape) for mask in masks] for masks in (logits, targets)]
    odd = [place for place, (own, true) in enumerate(zip(*sizes, strict=False)) if own != true or 0 in own]
    if odd or len(logits) != len(targets):
        what = f"Mask {odd[0]} is {sizes[0][odd[0]]}, its target {sizes[1][odd[0]]}" if odd else ""
        raise RequestError(
            what or f"{len(logits)} masks and {len(targets)} targets",
            "Each pixel of a mask is compared with one of its target",
            "Bring logits to the size of their image first" if odd else "Give a target for each mask, an empty one too",
        )
