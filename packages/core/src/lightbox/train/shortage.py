"""Memory that runs out: told apart from other errors, explained, and answered with smaller micro-batches.

A micro-batch is what one forward pass takes; its activations grow with its items, and the rest does not. So half of it
is the first thing to try, and the batch of a step stays what it is.
"""

import contextlib
import gc
from collections.abc import Iterator

import torch
from torch import nn

from lightbox.errors import WorkError
from lightbox.train import seeds, weights
from lightbox.train.card import RunCard
from lightbox.train.checkpoint import ResumeState
from lightbox.train.training import Training

SIZES = "train/micro_batch_size"
"""Curve with a point for each time that the micro-batch was cut."""

_SIGNS = ("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class Start:
    """Where the passes of a step began: generators and persistent buffers, to take them again to the same bits.

    Args:
        model: its buffers, such as running statistics, are copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._rng = seeds.rng_state()
        self._buffers = [(tensor, tensor.clone()) for tensor in weights.buffers(model)]

    def restore(self) -> None:
        """Put them back."""
        seeds.restore_rng(self._rng)
        for tensor, former in self._buffers:
            tensor.copy_(former)


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


def halve(
    training: Training, state: ResumeState, card: RunCard, *, place: str, message: str, start: Start | None
) -> None:
    """Make the micro-batch smaller, for this step and all later ones, and go back to where its passes began.

    Args:
        training, state, card: of the run; what was tried is noted.
        place: such as "step 3".
        message: of the allocator.
        start: of this step; None where `train.auto_batch` is off.

    Raises:
        WorkError: where no smaller micro-batch is allowed or possible.
    """
    training.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if training.device.type == "cuda":
        torch.cuda.empty_cache()  # else freed pieces of the wrong size stay with the allocator
    size = training.micro_batch_size(state)
    smaller = half(size, training.share)
    if start is None or not smaller:
        do = "Set train.auto_batch=true or a smaller optim.micro_batch_size; the effective batch stays the same"
        items = "1 item" if size == 1 else f"{size} items"
        place = f"at {place} with {items} in a forward pass"
        raise _error(training, state, place, message, do=do if smaller else None)
    start.restore()
    state.micro_batch_size = smaller
    state.history.setdefault(SIZES, []).append([state.step + 1, float(smaller)])
    card.note(f"{place}: memory ran out with {size} items in a forward pass, {smaller} from here on")


@contextlib.contextmanager
def explained(training: Training, state: ResumeState, place: str, *, do: str | None = None) -> Iterator[None]:
    """Say what takes the memory where it runs out outside the passes.

    Args:
        training, state: of the run.
        place: such as "in the update of step 3".
        do: what would help there, in place of the usual advice.

    Raises:
        WorkError: in place of the allocator's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        if not is_shortage(err):
            raise
        raise _error(training, state, place, str(err) or type(err).__name__, do=do) from err


def _error(training: Training, state: ResumeState, place: str, message: str, *, do: str | None = None) -> WorkError:
    advice = training.memory_advice
    why = advice(training.micro_batch_size(state)) if callable(advice) else advice
    return WorkError(
        f"Memory ran out {place} ({_first_sentences(message)})",
        why or "Activations grow with the items of a forward pass; weights, gradients and moments do not",
        do or "Set train.checkpoint_layers=true, store the base in fewer bits with adapter.quant, or shorten the rows",
    )


def _first_sentences(message: str) -> str:
    """The first two sentences of an allocator's message, without its table and hints."""
    line = (message.strip().splitlines() or ["no message"])[0]
    return ". ".join(line.split(". ")[:2]).rstrip(".")
