"""One optimiser step's gradient from several micro-batches, weighted by supervised tokens.

Averaging the means of micro-batches would weight a token by how few neighbours it has. Here each loss is a sum, and the
whole is divided once by the tokens of the step, so 8 micro-batches of 1 give the gradient of 1 of 8.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn

from lightbox.train.batches import BatchSource
from lightbox.train.precision import on_device

Step = Callable[[nn.Module, Any], tuple[Tensor, Tensor | int, dict[str, float | Tensor]]]
"""(model, batch) -> loss summed over supervised tokens, their number, means over them that are worth a curve."""


class Micro(NamedTuple):
    """One forward and backward pass: item indices, summed loss, supervised tokens, means over them."""

    indices: list[int]
    loss_sum: float
    tokens: int
    means: dict[str, float]


def accumulate(
    model: nn.Module,
    step: Step,
    batches: BatchSource,
    *,
    micro_batch_size: int,
    accelerator: Accelerator,
    parameters: Sequence[nn.Parameter],
) -> list[Micro]:
    """Take the next batch and leave in `grad` the gradient of its summed loss divided by its supervised tokens.

    Args:
        model, step, batches: as for `driver.fit`.
        micro_batch_size: items per forward pass, >= 1; the last pass may have fewer.
        accelerator: autocast, loss scale and device.
        parameters: what is trained, with empty gradients.

    Returns:
        One entry per forward pass.
    """
    indices = batches.next_indices()
    parts = [indices[start : start + micro_batch_size] for start in range(0, len(indices), micro_batch_size)]
    micros: list[Micro] = []
    divisor = 0.0
    for part in parts:
        batch = on_device(batches.collate(part), accelerator)
        with accelerator.autocast():
            loss_sum, n_tokens, means = step(model, batch)
        tokens = int(n_tokens)
        # all tokens are known after the last part only; a first guess keeps fp16 losses in range and is corrected below
        divisor = divisor or float(max(tokens, 1) * len(parts))
        accelerator.backward(loss_sum / divisor)
        micros.append(Micro(part, _number(loss_sum), tokens, {name: _number(value) for name, value in means.items()}))
    correction = divisor / max(sum(micro.tokens for micro in micros), 1)
    if correction != 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(correction)
    return micros


def combine(micros: Sequence[Micro]) -> dict[str, float]:
    """Means over the supervised tokens of the whole step, by metric key."""
    tokens = max(sum(micro.tokens for micro in micros), 1)
    names = [name for name in micros[0].means if all(name in micro.means for micro in micros)]
    means = {f"train/{name}": sum(micro.means[name] * micro.tokens for micro in micros) / tokens for name in names}
    return means | {"train/loss": sum(micro.loss_sum for micro in micros) / tokens}


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else float(value)
