"""One optimiser step's gradient from several micro-batches, weighted by supervised tokens.

Averaging the means of micro-batches would weight a token by how few neighbours it has. Here each loss is a sum, and the
whole is divided once by the tokens of the step, so 8 micro-batches of 1 give the gradient of 1 of 8, and two processes
with half a batch each give that of one with all of it.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn

from lightbox.train import processes, shortage
from lightbox.train.precision import on_device

Step = Callable[[nn.Module, Any], tuple[Tensor, Tensor | int, dict[str, float | Tensor]]]
"""(model, batch) -> loss summed over supervised tokens, their number, means over them that are worth a curve."""
Call = Callable[[Any], tuple[Tensor, Tensor | int, dict[str, float | Tensor]]]
"""A `Step` with its model bound, and with what gathers the model where it lies in shards."""


class Micro(NamedTuple):
    """One forward and backward pass: item indices, summed loss, supervised tokens, means over them."""

    indices: list[int]
    loss_sum: float
    tokens: int
    means: dict[str, float]


def accumulate(
    call: Call,
    collate: Callable[[list[int]], Any],
    indices: Sequence[int],
    *,
    micro_batch_size: int,
    accelerator: Accelerator,
    parameters: Sequence[nn.Parameter],
) -> list[Micro]:
    """Leave in `grad` the gradient of a batch's summed loss divided by its supervised tokens.

    Args:
        call: the paper's step on one micro-batch.
        collate: turns item indices into a batch.
        indices: items of the whole batch; with several processes each takes its share.
        micro_batch_size: items per forward pass, >= 1; the last pass may have fewer.
        accelerator: autocast, loss scale and device.
        parameters: what is trained, with empty gradients.

    Returns:
        One entry per forward pass, of all processes, in the order of `indices`.

    Raises:
        NoMemoryLeftError: where memory ran out in any process; gradients are left half-made. With shards it is raised
            in that process alone, since the others wait for it inside their own passes.
    """
    shares = processes.shares(indices)
    parts = _cut(shares[processes.rank()], micro_batch_size)
    fillers: list[list[int]] = []
    if processes.is_sharded():  # every process must take part in each gathering of a layer
        passes = max(len(_cut(share, micro_batch_size)) for share in shares)
        fillers = [[indices[0]]] * (passes - len(parts))
    message = ""
    try:
        own, divisor = _passes(call, collate, parts, fillers, accelerator)
    except (RuntimeError, MemoryError) as err:
        if not shortage.is_shortage(err):
            raise
        own, divisor, message = [], 1.0, str(err) or type(err).__name__
    told = [(own, message)] if message and processes.is_sharded() else processes.gather((own, message))
    message = next((message for _, message in told if message), "")
    if message:
        raise shortage.NoMemoryLeftError(message)  # raised out here, so that no frame of the pass holds its tensors
    micros = list(itertools.chain.from_iterable(part for part, _ in told))
    correction = divisor / max(sum(micro.tokens for micro in micros), 1)
    if correction != 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(correction)
    if not processes.is_sharded():
        processes.add_up(parameters)
    return micros


def combine(micros: Sequence[Micro]) -> dict[str, float]:
    """Means over the supervised tokens of the whole step, by metric key."""
    tokens = max(sum(micro.tokens for micro in micros), 1)
    names = [name for name in micros[0].means if all(name in micro.means for micro in micros)]
    means = {f"train/{name}": sum(micro.means[name] * micro.tokens for micro in micros) / tokens for name in names}
    return means | {"train/loss": sum(micro.loss_sum for micro in micros) / tokens}


def _passes(
    call: Call,
    collate: Callable[[list[int]], Any],
    parts: list[list[int]],
    fillers: list[list[int]],
    accelerator: Accelerator,
) -> tuple[list[Micro], float]:
    """Forward and backward over each part, and what the gradients are too small by; a filler's loss counts nothing."""
    micros: list[Micro] = []
    # shards are averaged over processes when they are sent, which is undone here; they know no loss scale
    divisor = 1.0 / processes.count() if processes.is_sharded() else 0.0
    for part in parts:
        loss_sum, n_tokens, means = _forward(call, collate(part), accelerator)
        tokens = int(n_tokens)
        # all tokens are known after the last part only; a first guess keeps fp16 losses in range and is corrected later
        divisor = divisor or float(max(tokens, 1) * len(parts))
        accelerator.backward(loss_sum / divisor)
        micros.append(Micro(part, _number(loss_sum), tokens, {name: _number(value) for name, value in means.items()}))
    for part in fillers:
        accelerator.backward(_forward(call, collate(part), accelerator)[0] * 0.0)
    return micros, 1.0 if processes.is_sharded() else divisor or 1.0


def _forward(call: Call, batch: Any, accelerator: Accelerator) -> tuple[Tensor, Tensor | int, dict[str, Any]]:
    batch = on_device(batch, accelerator)
    with accelerator.autocast():
        return call(batch)


def _cut(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else float(value)
