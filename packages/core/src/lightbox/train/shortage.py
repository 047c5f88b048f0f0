"""Memory that runs out: told apart from other errors, explained, and answered with smaller micro-batches.

A micro-batch is what one forward pass takes; its activations grow with its items, and the rest does not. So half of it
is the first thing to try, and the batch of a step stays what it is.
"""

import gc
from collections.abc import Callable

import torch

from lightbox.errors import WorkError

Advice = str | Callable[[int], str]
"""Which part takes most memory and what would fit: a sentence, or what makes it from items in a forward pass."""

_SIGNS = ("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class NoMemoryLeftError(Exception):
    """A forward or backward pass found no memory; nothing of it is held any more, so it may be tried again smaller."""


def is_shortage(err: BaseException) -> bool:
    """True where an error says that no memory is left; the allocator of the CPU raises a plain RuntimeError."""
    if isinstance(err, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(err, RuntimeError) and any(sign in str(err) for sign in _SIGNS)


def half(micro_batch_size: int, share: int) -> int:
    """The largest divisor of `share` that is at most half of a micro-batch; 0 where the micro-batch is 1.

    Args:
        micro_batch_size: items of a forward pass, >= 1.
        share: items of a step in this process, which a micro-batch divides.

    Example:
        >>> [half(size, 12) for size in (12, 6, 3, 1)]
        [6, 3, 1, 0]
        >>> half(7, 28)
        2
    """
    return max((size for size in range(1, micro_batch_size // 2 + 1) if share % size == 0), default=0)


def release(device: torch.device) -> None:
    """Give back what freed tensors still hold on the card."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def explained(message: str, *, step: int, micro_batch_size: int, advice: Advice | None, can_halve: bool) -> WorkError:
    """Say where memory ran out, what takes it, and which setting would help.

    Args:
        message: of the allocator.
        step: optimiser step in which it happened, counted from 1.
        micro_batch_size: items of the forward pass.
        advice: the largest part and what would fit, where the caller knows the model's sizes.
        can_halve: True where a smaller micro-batch may still be set.
    """
    why = advice(micro_batch_size) if callable(advice) else advice
    items = "1 item" if micro_batch_size == 1 else f"{micro_batch_size} items"
    halved = "Set train.auto_batch=true or a smaller optim.micro_batch_size; the effective batch stays the same"
    fewer = "Set train.checkpoint_layers=true, store the base in fewer bits with adapter.quant, or shorten the rows"
    return WorkError(
        f"Memory ran out at step {step} with {items} in a forward pass ({_first_sentences(message)})",
        why or "Activations grow with the items of a forward pass; weights, gradients and moments do not",
        halved if can_halve else fewer,
    )


def _first_sentences(message: str) -> str:
    """The first two sentences of an allocator's message, without its table and hints."""
    line = (message.strip().splitlines() or ["no message"])[0]
    return ". ".join(line.split(". ")[:2]).rstrip(".")
