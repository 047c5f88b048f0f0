"""What comes when: a deterministic order of examples that depends on the seed and the epoch and nothing else.

Position and order are saved with a checkpoint, and a resumed run continues with the very next batch. Worker processes
(`feed`) read the order ahead and move nothing here, so their number cannot change anything.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightbox.errors import RequestError, WorkError

MEGA_BATCHES = 32
"""Batches sorted by length together: more saves more padding, fewer mixes lengths better."""


@dataclass
class BatchSource:
    """Batches of item indices, epoch after epoch without end, and the function that makes tensors of them.

    Each epoch gives every item once; its last batch may be smaller. With `lengths`, items of similar length share a
    batch: each run of `MEGA_BATCHES` batches is sorted by length, then all batches are shuffled.

    Args:
        n_items: number of items, >= 1.
        collate: turns a list of item indices into one batch, on the CPU and without a draw, once per micro-batch or
            ahead of it in another process. Where a step prepares its items first (`driver.fit`), it gets a list of
            these in their place.
        batch_size: items per optimiser step, >= 1.
        seed: >= 0.
        lengths: one length per item (tokens) for bucketing; None shuffles plainly.
        ids: one name per item for messages; None numbers them. Names enter the hash of the order.
        row_lengths: gives what grows with an item's memory, n or n k where k kinds are padded apart (such as prompt
            and target); asked only where the longest are tried first (`driver.fit`), and without effect on the order.
    """

    n_items: int
    collate: Callable[[list[int]], Any]
    batch_size: int
    seed: int
    lengths: Sequence[int] | None = None
    ids: Sequence[str] | None = None
    row_lengths: Callable[[], Sequence[Any]] | None = None
    epoch: int = field(default=0, init=False)
    position: int = field(default=0, init=False)
    _drawn: tuple[int, list[list[int]]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n_items < 1 or self.batch_size < 1:
            raise RequestError(
                f"{self.n_items} items in batches of {self.batch_size}",
                "Training needs at least one of each",
                "Raise data.n_train or optim.batch_size",
            )
        for name, values in (("lengths", self.lengths), ("ids", self.ids)):
            if values is not None and len(values) != self.n_items:
                raise RequestError(
                    f"{len(values)} {name} for {self.n_items} items", "Each item needs one", f"Correct the {name}"
                )

    def next_indices(self) -> list[int]:
        """Indices of the next batch; moves on."""
        batches = self._current()
        if self.position == len(batches):
            self.epoch, self.position = self.epoch + 1, 0
            batches = self._current()
        self.position += 1
        return batches[self.position - 1]

    def upcoming(self) -> Iterator[list[int]]:
        """Batches from the next one on, without end; moves nothing, and is not moved."""
        first = self.order(self.epoch)[self.position :]
        later = (self.order(epoch) for epoch in itertools.count(self.epoch + 1))
        return itertools.chain(first, itertools.chain.from_iterable(later))

    def longest(self, n: int) -> list[int]:
        """Indices of at most `n` items that no others of their number need more memory than; wants `row_lengths`."""
        assert self.row_lengths is not None
        lengths = np.asarray(self.row_lengths()).reshape(self.n_items, -1)
        by_sum = np.argsort(-lengths.sum(axis=1), kind="stable").tolist()
        of_each_kind = lengths.argmax(axis=0).tolist() if n >= lengths.shape[1] else []
        return list(dict.fromkeys([*of_each_kind, *by_sum]))[:n]

    def rewind(self) -> None:
        """Go back to the first batch of the first epoch."""
        self.epoch, self.position = 0, 0

    def names(self, indices: Sequence[int]) -> list[str]:
        """Names of items, for messages."""
        return [str(index) if self.ids is None else self.ids[index] for index in indices]

    def order(self, epoch: int) -> list[list[int]]:
        """Batches of one epoch: a pure function of seed and epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        items = rng.permutation(self.n_items)
        if self.lengths is None:
            return _chunks(items, self.batch_size)
        lengths = np.asarray(self.lengths)
        batches: list[list[int]] = []
        for mega in np.split(items, range(0, self.n_items, MEGA_BATCHES * self.batch_size)[1:]):
            batches += _chunks(mega[np.argsort(lengths[mega], kind="stable")], self.batch_size)
        return [batches[i] for i in rng.permutation(len(batches))]

    def state(self) -> dict[str, Any]:
        """Epoch, position in it (batches taken) and a hash of the epoch's order, for a checkpoint."""
        return {"epoch": self.epoch, "position": self.position, "order": self._order_hash(self.epoch)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            WorkError: where this source would give another order than the one saved.
        """
        epoch, position = int(state["epoch"]), int(state["position"])
        here = self._order_hash(epoch)
        if here != state["order"]:
            raise WorkError(
                f"The checkpoint's order of examples has hash {state['order'][:12]}, this data gives {here[:12]}",
                "The items, their names, the batch size or the seed changed since, so it would be another run",
                "Put the data back as it was, or start anew with run.resume=false",
            )
        self.epoch, self.position = epoch, position

    def _current(self) -> list[list[int]]:
        if self._drawn is None or self._drawn[0] != self.epoch:
            self._drawn = self.epoch, self.order(self.epoch)
        return self._drawn[1]

    def _order_hash(self, epoch: int) -> str:
        batches = self._current() if epoch == self.epoch else self.order(epoch)
        lines = ("\t".join(self.names(batch)) for batch in batches)
        return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()


def _chunks(items: np.ndarray, size: int) -> list[list[int]]:
    return [items[start : start + size].tolist() for start in range(0, len(items), size)]
