"""The gradient of one step, taken again in smaller micro-batches where memory runs out."""

import contextlib
from collections.abc import Iterator

from lightbox.train import shortage
from lightbox.train.accumulation import Micro, accumulate
from lightbox.train.card import RunCard
from lightbox.train.checkpoint import ResumeState
from lightbox.train.parts import Parts, Start

SIZES = "train/micro_batch_size"
"""Curve with a point for each time that the micro-batch was cut."""


def take(made: Parts, state: ResumeState, card: RunCard, *, advice: shortage.Advice | None) -> list[Micro]:
    """Leave the next batch's gradient in `grad`; with `train.auto_batch` in smaller micro-batches if need be.

    A step that is taken again begins where it began: same items, same generators, same buffers. So it gives the bits of
    a run that had the smaller micro-batch from the start.

    Raises:
        WorkError: where memory runs out and no smaller micro-batch is allowed or possible.
    """
    indices = made.batches.next_indices()
    start = Start(made.model) if made.train.auto_batch else None
    while True:
        size = made.micro_batch_size(state)
        try:
            return accumulate(
                lambda batch: made.call(made.step, batch),
                made.batches.collate,
                indices,
                micro_batch_size=size,
                accelerator=made.accelerator,
                parameters=made.parameters,
            )
        except shortage.NoMemoryLeftError as err:
            message = str(err)
        made.optimizer.zero_grad(set_to_none=True)
        shortage.release(made.device)
        smaller = shortage.half(size, made.share)
        if start is None or not smaller:
            raise shortage.explained(
                message, step=state.step + 1, micro_batch_size=size, advice=advice, can_halve=smaller > 0
            )
        start.restore()
        state.micro_batch_size = smaller
        state.history.setdefault(SIZES, []).append([state.step + 1, float(smaller)])
        card.note(f"step {state.step + 1}: memory ran out with {size} items in a forward pass, {smaller} from here on")


@contextlib.contextmanager
def explained(made: Parts, state: ResumeState, *, advice: shortage.Advice | None) -> Iterator[None]:
    """Say what takes the memory where it runs out outside the passes: in the first update, or in an evaluation.

    Raises:
        WorkError: in place of the allocator's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        if not shortage.is_shortage(err):
            raise
        size = made.micro_batch_size(state)
        raise shortage.explained(
            str(err), step=state.step + 1, micro_batch_size=size, advice=advice, can_halve=False
        ) from err
